/* News of a run: the server's event stream moves the `tick` store, never faster than the page can draw; ages tick here. */
(function () {
  "use strict";

  const LEAST_MS = 1000;
  const RETRY_MS = 5000;
  const state = { run: null, cursor: 0, source: null, pending: null, requests: 0, lastTick: 0, opened: 0, skew: null };

  /* Requests of the page under way: while there are any, news wait, and only the latest is kept. */
  const plainFetch = window.fetch;
  window.fetch = function (resource, options) {
    const address = typeof resource === "string" ? resource : resource.url;
    if (!String(address).includes("_dash-update-component")) return plainFetch.apply(this, arguments);
    state.requests += 1;
    return plainFetch.apply(this, arguments).finally(() => {
      state.requests -= 1;
    });
  };

  function connect() {
    disconnect();
    if (state.run === null || document.hidden) return;
    state.opened = Date.now();
    state.source = new EventSource(`/api/v1/runs/${encodeURIComponent(state.run)}/stream?cursor=${state.cursor}`);
    state.source.onmessage = receive;
    state.source.addEventListener("change", receive);
  }

  function disconnect() {
    if (state.source) state.source.close();
    state.source = null;
  }

  function receive(event) {
    let change;
    try {
      change = JSON.parse(event.data);
    } catch (error) {
      return;
    }
    if (change.run !== state.run) return;
    state.skew = change.server_time_ms - Date.now();
    state.pending = change;
    flush();
  }

  function flush() {
    const news = state.pending;
    if (!news || state.requests > 0 || Date.now() - state.lastTick < LEAST_MS) return;
    if (!document.getElementById("heat-graph")) return;
    state.pending = null;
    state.lastTick = Date.now();
    state.cursor = news.cursor;
    window.dash_clientside.set_props("tick", { data: { cursor: news.cursor, state: news.state } });
  }

  window.internistLive = {
    follow(run, cursor) {
      state.run = run;
      state.cursor = cursor;
      state.pending = null;
      connect();
    },
    leave() {
      state.run = null;
      disconnect();
    },
    isBusy() {
      return state.requests > 0;
    },
    /** Whether the stream is down, so that the page has to ask. */
    needsPolling() {
      if (state.run === null || document.hidden || state.requests > 0) return false;
      const isOpen = state.source && state.source.readyState === EventSource.OPEN;
      if (!isOpen && (!state.source || state.source.readyState === EventSource.CLOSED) && Date.now() - state.opened > RETRY_MS) connect();
      return !isOpen;
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
  setInterval(flush, 250);
})();
