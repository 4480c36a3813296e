/* News of a run: the server's event stream moves the `tick` store, never faster than the page can draw; ages tick here. */
(function () {
  "use strict";

  const LEAST_MS = 100;
  const RETRY_MS = 5000;
  const AWAY_MS = 20000; /* a hidden page holds no stream and asks this often: its title goes on telling */
  const state = { run: null, cursor: 0, source: null, pending: null, lastTick: 0, opened: 0, asked: 0 };
  const connection = window.internistConnection;

  function connect() {
    disconnect();
    if (state.run === null || document.hidden) return;
    state.opened = Date.now();
    state.source = new EventSource(`${connection.base()}api/v1/runs/${encodeURIComponent(state.run)}/stream?cursor=${state.cursor}`);
    state.source.onopen = connection.hear;
    state.source.addEventListener("alive", connection.hear);
    state.source.addEventListener("change", receive);
  }

  function disconnect() {
    if (state.source) state.source.close();
    state.source = null;
  }

  function receive(event) {
    const change = JSON.parse(event.data);
    if (change.run !== state.run) return;
    connection.hear();
    window.internistTitle.tell(change);
    window.internistNotify.tell(state.run, window.internistTitle.name(), change);
    state.pending = change;
    flush();
  }

  function flush() {
    const news = state.pending;
    if (!news || connection.isBusy() || window.internistNews.isAsking() || Date.now() - state.lastTick < LEAST_MS) return;
    if (!document.getElementById("heat-graph")) return;
    state.pending = null;
    state.lastTick = Date.now();
    state.cursor = news.cursor;
    window.internistNews.take(state.run, news);
  }

  function isOpen() {
    return state.source !== null && state.source.readyState === EventSource.OPEN;
  }

  function listsRuns() {
    return document.getElementById("runs-table") || document.getElementById("alerts-list");
  }

  /** A hidden page asks how its run is, for the title alone. */
  function askForTitle() {
    if (!document.hidden || state.run === null || Date.now() - state.asked < AWAY_MS) return;
    state.asked = Date.now();
    connection
      .ask(`api/v1/runs/${encodeURIComponent(state.run)}`)
      .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(String(answer.status)))))
      .then((run) => {
        connection.hear();
        if (!document.hidden || run.id !== state.run) return;
        window.internistTitle.tell(run);
        window.internistNotify.tell(run.id, run.name, run);
      })
      .catch(() => connection.lose());
  }

  window.internistLive = {
    follow(run, cursor) {
      state.run = run;
      state.cursor = cursor;
      state.pending = null;
      window.internistNews.forget();
      connect();
    },
    run: () => state.run,
    leave() {
      state.run = null;
      disconnect();
    },
    /** Whether silence means something here: a page that asks or listens by itself. */
    expectsNews() {
      return state.run !== null || listsRuns() !== null;
    },
    /** The server is back: what is drawn is asked for again. */
    refresh() {
      if (state.run !== null) {
        connect();
        window.dash_clientside.set_props("tick", { data: { cursor: state.cursor, again: Date.now() } });
      } else if (document.getElementById("runs-table")) window.dash_clientside.set_props("runs-tick", { data: { again: Date.now() } });
      else if (document.getElementById("alerts-list")) window.dash_clientside.set_props("alerts-tick", { data: { again: Date.now() } });
    },
    /** Whether the stream is down, so that the page has to ask. */
    needsPolling() {
      if (state.run === null || document.hidden || connection.isBusy() || connection.isLost()) return false;
      const isClosed = state.source === null || state.source.readyState === EventSource.CLOSED;
      if (isClosed && Date.now() - state.opened > RETRY_MS) connect();
      return !isOpen();
    },
  };

  /* A hidden page holds no connection: browsers allow six per server. */
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));

  function age(milliseconds) {
    const seconds = Math.max(0, Math.floor(milliseconds / 1000));
    for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
      if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit} ago`;
    }
    return `${seconds} s ago`;
  }

  function tickAges() {
    for (const element of document.querySelectorAll("[data-at]")) {
      if (element.dataset.seen !== element.dataset.now) {
        element.dataset.seen = element.dataset.now;
        element.dataset.skew = Number(element.dataset.now) - Date.now();
      }
      const now = Date.now() + Number(element.dataset.skew);
      const text = (element.dataset.prefix || "") + age(now - Number(element.dataset.at));
      if (element.textContent !== text) element.textContent = text;
    }
  }

  setInterval(tickAges, 1000);
  setInterval(flush, 100);
  setInterval(askForTitle, 1000);
})();
