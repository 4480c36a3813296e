/* Whether the server answers: when it was last heard, and the bar that says so when it is not. Nothing that was drawn
   before counts as news: a page that hears nothing says so within ten seconds, and comes back by itself. */
(function () {
  "use strict";

  const SILENT_MS = 10000;
  const PROBE_MS = 2000;
  const PROBE_TIMEOUT_MS = 8000;
  const PROBE = "api/v1/runs?limit=1"; /* asks for the token, too: being signed out is no news either */
  const state = { heardAt: Date.now(), lostAt: null, why: "", requests: 0, isProbing: false, wentAway: false };
  const root = document.documentElement;

  const plainFetch = window.fetch;
  window.fetch = function (resource) {
    const address = typeof resource === "string" ? resource : resource.url;
    if (!String(address).includes("_dash-update-component")) return plainFetch.apply(this, arguments);
    state.requests += 1;
    return plainFetch
      .apply(this, arguments)
      .then(
        (answer) => {
          if (answer.status === 401 || answer.status === 403) lose("signed out");
          else if (answer.status >= 500) lose();
          else hear();
          return answer;
        },
        (error) => {
          lose();
          throw error;
        },
      )
      .finally(() => {
        state.requests -= 1;
      });
  };

  /** Tell the server something; its answer, or an error that says why not. */
  async function told(method, path, body) {
    const answer = await window.internistConnection.send(method, path, body);
    if (!answer.ok) throw new Error(`the server answered ${answer.status}: ${(await answer.text()).slice(0, 200)}`);
    return answer.json();
  }

  /** The path under which this page was reached: what it asks for lies there, too. */
  function base() {
    return root.dataset.base;
  }

  function hear() {
    state.heardAt = Date.now();
    if (state.lostAt !== null) recover();
  }

  function lose(why) {
    if (state.wentAway) return;
    state.why = why || state.why;
    if (state.lostAt === null) state.lostAt = state.heardAt;
    show();
    probe();
  }

  function recover() {
    state.lostAt = null;
    state.why = "";
    show();
    window.internistLive.refresh();
  }

  function probe() {
    if (state.isProbing || state.lostAt === null) return;
    state.isProbing = true;
    plainFetch(base() + PROBE, { cache: "no-store", signal: AbortSignal.timeout(PROBE_TIMEOUT_MS) })
      .then((answer) => {
        if (answer.ok) hear();
        else state.why = answer.status === 401 || answer.status === 403 ? "signed out" : "";
      })
      .catch(() => { state.why = ""; })
      .finally(() => {
        state.isProbing = false;
        if (state.lostAt !== null) show();
      });
  }

  function clock(at) {
    const time = new Date(at);
    const hours = `${String(time.getHours()).padStart(2, "0")}:${String(time.getMinutes()).padStart(2, "0")}`;
    return Date.now() - at > 20 * 3600 * 1000 ? `${time.toLocaleDateString()} ${hours}` : hours;
  }

  function show() {
    const isLost = state.lostAt !== null;
    if (isLost) root.dataset.connection = "lost";
    else delete root.dataset.connection;
    window.internistTitle.offline(isLost);
    let bar = document.getElementById("connection");
    if (!isLost) return bar && bar.remove();
    const said = state.why === "signed out" ? "Signed out" : "No connection";
    const text = `${said} since ${clock(state.lostAt)}; drawn is the last answer.`;
    if (bar && bar.dataset.text === text) return;
    if (!bar) {
      bar = document.createElement("div");
      bar.id = "connection";
      bar.className = "notice lost";
      bar.setAttribute("role", "alert");
      document.body.prepend(bar);
    }
    bar.dataset.text = text;
    bar.replaceChildren(part("strong", text), state.why === "signed out" ? signIn() : part("span", "Training goes on; what it measures waits in its spool. This page comes back by itself."));
  }

  function part(tag, text) {
    const element = document.createElement(tag);
    element.textContent = text;
    return element;
  }

  function signIn() {
    const link = part("a", "Sign in again");
    link.className = "link";
    link.href = `${base()}login?next=${encodeURIComponent(location.pathname + location.search)}`;
    return link;
  }

  function check() {
    if (state.lostAt !== null) probe();
    else if (!document.hidden && window.internistLive.expectsNews() && Date.now() - state.heardAt > SILENT_MS) lose();
  }

  window.internistConnection = {
    hear,
    lose,
    isBusy: () => state.requests > 0,
    isLost: () => state.lostAt !== null,
    ask: (path) => plainFetch(base() + path, { cache: "no-store" }),
    told,
    send: (method, path, body) => plainFetch(base() + path, { method, ...(body === undefined ? {} : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }) }),
    base,
  };

  /* A page that comes back to the front has a moment to hear something. */
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) state.heardAt = Math.max(state.heardAt, Date.now() - SILENT_MS / 2);
  });
  window.addEventListener("pagehide", () => { state.wentAway = true; });
  window.addEventListener("pageshow", () => { state.wentAway = false; });
  /* Only then are the scripts there that are told of it. */
  window.addEventListener("load", () => {
    window.addEventListener("offline", () => lose());
    setInterval(check, PROBE_MS / 2);
  });
})();
