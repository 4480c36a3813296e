/* The passes for an arithmetic's type T: included by passes.c, once for each.
 *
 * A pair (u, v) and the images l = X v and r = X'u of a matrix X make the correction u r' + (l - c u) v'. With c = u'l
 * it is X - P_u X P_v. Each loop is written twice: for LANES entries at once, and for what is left of a row.
 */

/* m <- m + w (g - m); out <- N = m + ahead g. */
void OF(advance)(const float *restrict g, float *restrict m, T *restrict out, int64_t entries, float w,
                 float ahead) {
  const int64_t whole = entries - entries % LANES;
  for (int64_t j = 0; j < whole; j += LANES) {
    floats entry, moment;
    AHEAD(g + j), AHEAD(m + j);
    load_float(g + j, &entry), load_float(m + j, &moment);
    moment += w * (entry - moment);
    const floats n = moment + ahead * entry;
    store_float(m + j, &moment), OF(store)(out + j, &n);
  }
  for (int64_t j = whole; j < entries; j++) {
    m[j] += w * (g[j] - m[j]);
    out[j] = OF(as)(m[j] + ahead * g[j]);
  }
}

/* The same, with left <- N v and right <- N'u; returns the sum of N's squares. */
float OF(advance_with_images)(const float *restrict g, float *restrict m, T *restrict out, int64_t rows,
                              int64_t columns, float w, float ahead, const float *restrict u,
                              const float *restrict v, float *restrict left, float *restrict right) {
  const int64_t whole = columns - columns % (SUMS * LANES);
  float squares = 0.0f;
  memset(right, 0, columns * sizeof *right);
  for (int64_t i = 0; i < rows; i++, g += columns, m += columns, out += columns) {
    floats images[SUMS] = {{0.0f}}, sums[SUMS] = {{0.0f}};
    for (int64_t j = 0; j < whole; j += SUMS * LANES) {
      for (int k = 0; k < SUMS; k++) {
        const int64_t at = j + k * LANES;
        floats entry, moment, image, other;
        AHEAD(g + at), AHEAD(m + at);
        load_float(g + at, &entry), load_float(m + at, &moment);
        load_float(right + at, &image), load_float(v + at, &other);
        moment += w * (entry - moment);
        const floats n = moment + ahead * entry;
        image += u[i] * n;
        images[k] += n * other;
        sums[k] += n * n;
        store_float(m + at, &moment), OF(store)(out + at, &n), store_float(right + at, &image);
      }
    }
    float image = sum_of(images, SUMS), square = sum_of(sums, SUMS);
    for (int64_t j = whole; j < columns; j++) {
      m[j] += w * (g[j] - m[j]);
      const float n = m[j] + ahead * g[j];
      out[j] = OF(as)(n);
      right[j] += u[i] * n;
      image += n * v[j];
      square += n * n;
    }
    left[i] = image;
    squares += square;
  }
  return squares;
}

/* x <- x - correction. */
void OF(correct)(T *restrict x, int64_t rows, int64_t columns, const float *restrict u, const float *restrict v,
                 const float *restrict left, const float *restrict right, float c) {
  const int64_t whole = columns - columns % LANES;
  for (int64_t i = 0; i < rows; i++, x += columns) {
    const float first = u[i], second = left[i] - c * u[i];
    for (int64_t j = 0; j < whole; j += LANES) {
      floats entry, image, other;
      AHEAD(x + j);
      OF(load)(x + j, &entry), load_float(right + j, &image), load_float(v + j, &other);
      entry -= first * image + second * other;
      OF(store)(x + j, &entry);
    }
    for (int64_t j = whole; j < columns; j++) x[j] = OF(as)(OF(wide)(x[j]) - (first * right[j] + second * v[j]));
  }
}

/* out <- N - correction, rounded once. */
void OF(combine)(const float *restrict g, const float *restrict m, T *restrict out, int64_t rows, int64_t columns,
                 float ahead, const float *restrict u, const float *restrict v, const float *restrict left,
                 const float *restrict right, float c) {
  const int64_t whole = columns - columns % LANES;
  for (int64_t i = 0; i < rows; i++, g += columns, m += columns, out += columns) {
    const float first = u[i], second = left[i] - c * u[i];
    for (int64_t j = 0; j < whole; j += LANES) {
      floats entry, moment, image, other;
      AHEAD(g + j), AHEAD(m + j);
      load_float(g + j, &entry), load_float(m + j, &moment);
      load_float(right + j, &image), load_float(v + j, &other);
      entry = moment + ahead * entry - (first * image + second * other);
      OF(store)(out + j, &entry);
    }
    for (int64_t j = whole; j < columns; j++)
      out[j] = OF(as)(m[j] + ahead * g[j] - (first * right[j] + second * v[j]));
  }
}

/* left <- D v, right <- D'u. By tiles, so that what is summed stays in registers. */
void OF(images)(const T *restrict d, int64_t rows, int64_t columns, const float *restrict u, const float *restrict v,
                float *restrict left, float *restrict right) {
  const int64_t whole = columns - columns % (SUMS * LANES);
  memset(right, 0, columns * sizeof *right);
  for (int64_t top = 0; top < rows; top += TALL) {
    const int64_t tall = rows - top < TALL ? rows - top : TALL;
    floats sums[TALL];
    memset(sums, 0, sizeof sums);
    for (int64_t j = 0; j < whole; j += SUMS * LANES) {
      floats others[SUMS], images[SUMS];
      for (int k = 0; k < SUMS; k++) {
        load_float(v + j + k * LANES, &others[k]);
        load_float(right + j + k * LANES, &images[k]);
      }
      for (int64_t i = 0; i < tall; i++) {
        const T *const x = d + (top + i) * columns + j;
        const float share = u[top + i];
        floats sum = sums[i];
        for (int k = 0; k < SUMS; k++) {
          floats entry;
          OF(load)(x + k * LANES, &entry);
          images[k] += share * entry;
          sum += entry * others[k];
        }
        sums[i] = sum;
      }
      for (int k = 0; k < SUMS; k++) store_float(right + j + k * LANES, &images[k]);
    }
    for (int64_t i = top; i < top + tall; i++) {
      const T *const x = d + i * columns;
      float image = sum_of(&sums[i - top], 1);
      for (int64_t j = whole; j < columns; j++) {
        right[j] += u[i] * OF(wide)(x[j]);
        image += OF(wide)(x[j]) * v[j];
      }
      left[i] = image;
    }
  }
}

/* w <- keep w - length D. */
void OF(write)(float *restrict w, const T *restrict d, int64_t entries, float keep, float length) {
  const int64_t whole = entries - entries % LANES;
  for (int64_t j = 0; j < whole; j += LANES) {
    floats weight, entry;
    AHEAD(w + j), AHEAD(d + j);
    load_float(w + j, &weight), OF(load)(d + j, &entry);
    weight = keep * weight - length * entry;
    store_float(w + j, &weight);
  }
  for (int64_t j = whole; j < entries; j++) w[j] = keep * w[j] - length * OF(wide)(d[j]);
}

/* w <- keep w - length (D - correction). */
void OF(write_corrected)(float *restrict w, const T *restrict d, int64_t rows, int64_t columns, float keep,
                         float length, const float *restrict u, const float *restrict v, const float *restrict left,
                         const float *restrict right, float c) {
  const int64_t whole = columns - columns % LANES;
  for (int64_t i = 0; i < rows; i++, w += columns, d += columns) {
    const float first = u[i], second = left[i] - c * u[i];
    for (int64_t j = 0; j < whole; j += LANES) {
      floats weight, entry, image, other;
      AHEAD(w + j), AHEAD(d + j);
      load_float(w + j, &weight), OF(load)(d + j, &entry);
      load_float(right + j, &image), load_float(v + j, &other);
      weight = keep * weight - length * (entry - (first * image + second * other));
      store_float(w + j, &weight);
    }
    for (int64_t j = whole; j < columns; j++)
      w[j] = keep * w[j] - length * (OF(wide)(d[j]) - (first * right[j] + second * v[j]));
  }
}

INLINE void OF(scale)(T *restrict x, int64_t entries, float factor) {
  const int64_t whole = entries - entries % LANES;
  for (int64_t j = 0; j < whole; j += LANES) {
    floats entry;
    OF(load)(x + j, &entry);
    entry *= factor;
    OF(store)(x + j, &entry);
  }
  for (int64_t j = whole; j < entries; j++) x[j] = OF(as)(factor * OF(wide)(x[j]));
}

/* out <- P_u N P_v of one whole matrix, after m <- m + w (g - m): with its images, left and right. N is rounded before it
 * is corrected, too, unless more than a share of its squares goes. Returns u'left. */
float OF(advance_projected)(const float *restrict g, float *restrict m, T *restrict out, int64_t rows, int64_t columns,
                            float w, float ahead, const float *restrict u, const float *restrict v,
                            float *restrict left, float *restrict right, float share) {
  const float squares = OF(advance_with_images)(g, m, out, rows, columns, w, ahead, u, v, left, right);
  const float c = dot(u, left, rows);
  if (dot(left, left, rows) + dot(right, right, columns) - c * c <= share * squares)
    OF(correct)(out, rows, columns, u, v, left, right, c);
  else
    OF(combine)(g, m, out, rows, columns, ahead, u, v, left, right, c);
  return c;
}

/* w <- keep w - length (P_u D P_v - back u v') of one whole matrix; both may hold rows and columns numbers, together. */
void OF(write_projected)(float *restrict w, const T *restrict d, int64_t rows, int64_t columns, float keep,
                         float length, float back, const float *restrict u, const float *restrict v,
                         float *restrict both) {
  OF(images)(d, rows, columns, u, v, both, both + rows);
  const float c = dot(u, both, rows) - back;
  OF(write_corrected)(w, d, rows, columns, keep, length, u, v, both, both + rows, c);
}

/* x <- x / (shrink^2 trace x), which is no less than floor; returns 1 / (shrink sqrt(trace x)). */
float OF(normalize)(T *restrict x, int64_t side, float shrink, float floor) {
  float trace = 0.0f;
  for (int64_t i = 0; i < side; i++) trace += OF(wide)(x[i * (side + 1)]);
  const float inverse = 1.0f / (sqrtf(trace < floor ? floor : trace) * shrink); /* NaN stays NaN */
  OF(scale)(x, side * side, inverse * inverse);
  return inverse;
}

/* x <- factor x + shift I, the diagonal times the numbers of spread. */
void OF(scale_sum)(T *restrict x, int64_t side, float factor, float shift, const float *restrict spread) {
  for (int64_t i = 0; i < side; i++) {
    T *const row = x + i * side;
    const float entry = (factor * OF(wide)(row[i]) + shift) * spread[i];
    OF(scale)(row, side, factor);
    row[i] = OF(as)(entry);
  }
}
