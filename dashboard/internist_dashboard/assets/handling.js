/* Acknowledging and silencing in place, and taking either back: who it is is asked once and kept in this browser. */
(function () {
  "use strict";

  const AT_ONCE = 8;
  const SPANS = [["1 hour", 3600], ["8 hours", 28800], ["1 day", 86400], ["7 days", 604800]];
  const { told } = window.internistConnection;

  function kept() {
    try { return localStorage.getItem("internist-who") || ""; } catch (error) { return ""; }
  }

  function keep(name) {
    try { localStorage.setItem("internist-who", name); } catch (error) { /* private windows keep nothing */ }
  }

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function field(label, properties) {
    const input = element("input", { type: "text", required: true, maxLength: 200, placeholder: label, ...properties });
    input.setAttribute("aria-label", label);
    return input;
  }

  /** A form in place of the button: Escape leaves things as they were; what was done can be undone. */
  function ask(button, fields, said, act) {
    const name = field("your name", { value: kept(), autocomplete: "name" });
    const send = element("button", { type: "submit", className: "small-button" }, said);
    const form = element("form", { className: "handling" }, name, ...fields, send);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const who = name.value.trim();
      if (!who) return;
      keep(who);
      send.disabled = true;
      act(who)
        .then(({ done, undo }) => form.replaceWith(outcome(done, undo)))
        .then(window.internistLive.refresh)
        .catch((error) => fail(send, error));
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      form.replaceWith(button);
      button.focus();
    });
    button.replaceWith(form);
    const first = name.value ? fields[0] || name : name;
    first.focus();
  }

  function outcome(done, undo) {
    const back = element("button", { type: "button", className: "plain link" }, "undo");
    back.addEventListener("click", () => undo().then(window.internistLive.refresh).then(() => back.replaceWith("undone")).catch((error) => fail(back, error)));
    return element("span", { className: "quiet alert-seen" }, `${done} `, back);
  }

  function fail(button, error) {
    button.disabled = false;
    button.textContent = "try again";
    button.title = String(error.message || error);
  }

  async function each(ids, work) {
    const waiting = [...ids];
    async function go() {
      for (let id = waiting.shift(); id !== undefined; id = waiting.shift()) await work(id);
    }
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, ids.length) }, go));
  }

  const withdraw = (ids) => each(ids, (id) => told("DELETE", `api/v1/alerts/${id}/acknowledge`));

  function acknowledge(button) {
    const ids = button.dataset.acknowledge.split(",");
    ask(button, [], "Acknowledge", async (who) => {
      await each(ids, (id) => told("POST", `api/v1/alerts/${id}/acknowledge`, { by: who }));
      return { done: `acknowledged by ${who}`, undo: () => withdraw(ids) };
    });
  }

  function silence(button) {
    const why = field("why", {});
    const span = element("select", {}, ...SPANS.map(([said, seconds]) => element("option", { value: seconds }, said)));
    span.setAttribute("aria-label", "for how long");
    const matchers = { run: button.dataset.silence, condition: button.dataset.condition };
    ask(button, [why, span], "Silence", async (who) => {
      const made = await told("POST", "api/v1/silences", { matchers, author: who, reason: why.value.trim() || "no reason given", seconds: Number(span.value) });
      const until = new Date(made.expires_at_ms).toLocaleString([], { weekday: "short", hour: "2-digit", minute: "2-digit" });
      return { done: `silenced by ${who} until ${until}`, undo: () => told("DELETE", `api/v1/silences/${made.id}`) };
    });
  }

  function end(button) {
    told("DELETE", `api/v1/silences/${button.dataset.unsilence}`).then(window.internistLive.refresh).catch((error) => fail(button, error));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("[data-acknowledge], [data-silence], [data-withdraw], [data-unsilence]");
    if (!button) return;
    if (button.dataset.unsilence) return end(button);
    if (button.dataset.acknowledge) acknowledge(button);
    else if (button.dataset.silence) silence(button);
    else withdraw(button.dataset.withdraw.split(",")).then(window.internistLive.refresh).catch((error) => fail(button, error));
  });
})();
