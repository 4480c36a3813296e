/* Acknowledging in place: who has seen an event is asked once and kept; every alert of the event is told. */
(function () {
  "use strict";

  const AT_ONCE = 8;
  const connection = window.internistConnection;

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

  /** Ask who it is, in place of the button; Escape leaves it as it was. */
  function ask(button) {
    const name = element("input", { type: "text", value: kept(), required: true, maxLength: 200, placeholder: "your name", autocomplete: "name" });
    name.setAttribute("aria-label", "who acknowledges");
    const send = element("button", { type: "submit", className: "small-button" }, "Acknowledge");
    const form = element("form", { className: "handling" }, name, send);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const who = name.value.trim();
      if (!who) return;
      keep(who);
      send.disabled = true;
      acknowledge(button.dataset.acknowledge.split(","), who)
        .then(() => form.replaceWith(element("span", { className: "quiet alert-seen" }, `acknowledged by ${who}`)))
        .then(window.internistLive.refresh)
        .catch((error) => {
          send.disabled = false;
          send.textContent = "Try again";
          send.title = String(error.message || error);
        });
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      form.replaceWith(button);
      button.focus();
    });
    button.replaceWith(form);
    name.focus();
    name.select();
  }

  async function acknowledge(ids, who) {
    const waiting = [...ids];
    async function work() {
      for (let id = waiting.shift(); id !== undefined; id = waiting.shift()) {
        const answer = await connection.send("POST", `api/v1/alerts/${id}/acknowledge`, { by: who });
        if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      }
    }
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, ids.length) }, work));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("[data-acknowledge]");
    if (button) ask(button);
  });
})();
