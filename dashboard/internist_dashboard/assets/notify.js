/* A browser's notification while nobody looks at the page, for those who ask for one: a run is violated, or no longer
   lives as it should. */
(function () {
  "use strict";

  const KEPT = "internist-notify";
  const TROUBLED = ["lost", "stalled", "failed", "killed"];
  const isOffered = "Notification" in window && window.isSecureContext;
  let before = null;

  function isWanted() {
    try { return isOffered && Notification.permission === "granted" && localStorage.getItem(KEPT) === "1"; } catch (error) { return false; }
  }

  function keep(isOn) {
    try { localStorage.setItem(KEPT, isOn ? "1" : "0"); } catch (error) { /* private windows keep nothing */ }
    say();
  }

  function say() {
    const button = document.getElementById("notify-button");
    if (!button) return;
    const isOn = isWanted();
    const said = isOn ? "notifies" : isOffered && Notification.permission === "denied" ? "notifications are blocked" : "notify me";
    button.hidden = !isOffered;
    if (button.textContent !== said) button.textContent = said;
    button.setAttribute("aria-pressed", String(isOn));
  }

  /** What of a run is news to somebody who looks elsewhere; empty where nothing is. */
  function news(was, now) {
    if (was === null) return "";
    if (TROUBLED.includes(now.state) && was.state !== now.state) return `The run is ${now.state}.`;
    if (now.verdict === "violated" && (was.verdict !== "violated" || now.open_alerts > was.open_alerts)) return `Violated: ${now.open_alerts} open.`;
    return "";
  }

  window.internistNotify = {
    /** How a run is now. */
    tell(run, name, now) {
      const said = before && before.run === run ? news(before.now, now) : "";
      before = { run, now };
      if (!said || !document.hidden || !isWanted()) return;
      const shown = new Notification(name || run, { body: said, tag: `internist-${run}` });
      shown.onclick = () => { window.focus(); shown.close(); };
    },
  };

  document.addEventListener("click", (event) => {
    if (!event.target.closest || !event.target.closest("#notify-button")) return;
    if (isWanted()) return keep(false);
    Notification.requestPermission().then((answer) => keep(answer === "granted"));
  });
  setInterval(say, 1000);
})();
