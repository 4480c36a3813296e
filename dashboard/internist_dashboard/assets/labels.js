/* What people say of a run: its name, tags and notes, pinned, archived, deleted; changed where it stands. */
(function () {
  "use strict";

  const { told, base } = window.internistConnection;
  const FIELDS = {
    name: { label: "name", read: (text) => text.trim() },
    tags: { label: "tags, separated by commas", read: (text) => text.split(",").map((one) => one.trim()).filter(Boolean) },
    notes: { label: "notes", read: (text) => text, isLong: true },
  };

  const pathOf = (element) => `api/v1/runs/${encodeURIComponent(element.closest("[data-run]").dataset.run)}`;

  function redraw(run) {
    const crumb = document.querySelector(".crumb.here");
    if (crumb) crumb.textContent = run.name;
    window.dash_clientside.set_props("about-tick", { data: Date.now() });
  }

  function fail(button, error) {
    button.disabled = false;
    button.textContent = "try again";
    button.title = String(error.message || error);
  }

  /** A form in place of the value; Escape leaves it as it was. */
  function edit(button) {
    const name = button.dataset.edit;
    const field = FIELDS[name];
    const input = Object.assign(document.createElement(field.isLong ? "textarea" : "input"), { value: button.dataset.value });
    input.setAttribute("aria-label", field.label);
    if (field.isLong) input.rows = 5;
    const save = Object.assign(document.createElement("button"), { type: "submit", className: "small-button", textContent: "Save" });
    const form = Object.assign(document.createElement("form"), { className: "about-form" });
    form.append(input, save);
    const place = button.parentElement;
    const before = [...place.childNodes];
    const back = () => { place.replaceChildren(...before); button.focus(); };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      save.disabled = true;
      told("PATCH", pathOf(place), { [name]: field.read(input.value) }).then((run) => { back(); redraw(run); }, (error) => fail(save, error));
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      back();
    });
    place.replaceChildren(form);
    input.focus();
  }

  function remove(button) {
    if (!window.confirm(`Delete ${button.dataset.deleteRun} with all its points and alerts, for good?`)) return;
    button.disabled = true;
    told("DELETE", pathOf(button)).then(() => location.assign(base()), (error) => fail(button, error));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("[data-edit], [data-change-run], [data-delete-run]");
    if (!button) return;
    if (button.dataset.edit) return edit(button);
    if (button.dataset.deleteRun !== undefined) return remove(button);
    told("PATCH", pathOf(button), JSON.parse(button.dataset.changeRun)).then(redraw, (error) => fail(button, error));
  });
})();
