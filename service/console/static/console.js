"use strict";
// What pages do beside htmx: forms that speak to the API, the confirmation dialog, messages.
(() => {
  const token = document.querySelector('meta[name="csrf-token"]').content;
  const toast = document.getElementById("toast");
  const dialog = document.getElementById("dialog");
  let hiding;

  function say(text) {
    toast.textContent = text;
    toast.hidden = false;
    clearTimeout(hiding);
    hiding = setTimeout(() => (toast.hidden = true), 12000);
  }

  function inWords(problem, status) {
    const detail = problem.detail || `the service answered ${status}`;
    return detail + (problem.hint ? ` (${problem.hint})` : "");
  }

  async function problemOf(response) {
    try {
      return await response.json();
    } catch {
      return {};
    }
  }

  // A form with data-api is sent to its address as JSON, or without a body.
  async function toApi(form) {
    const button = form.querySelector("button:not([type=button])");
    button.disabled = true;
    const headers = { "X-CSRF-Token": token, Accept: "application/json" };
    const body = form.dataset.body;
    if (body) headers["Content-Type"] = "application/json";
    try {
      const response = await fetch(form.getAttribute("action"), { method: form.dataset.method || "POST", headers, body });
      if (!response.ok) {
        const problem = await problemOf(response);
        dialog.close();
        say(inWords(problem, response.status));
        return;
      }
      if (form.dataset.then === "reload") location.reload();
      else location.assign(form.dataset.then);
    } catch {
      say("The service does not answer.");
    } finally {
      button.disabled = false;
    }
  }

  function ask(form) {
    const body = document.getElementById("dialog-body");
    body.replaceChildren();
    const title = document.createElement("h2");
    title.id = "dialog-title";
    title.textContent = form.dataset.confirm;
    const row = document.createElement("p");
    row.className = "row";
    const yes = form.querySelector("button").cloneNode(true);
    const no = document.createElement("button");
    no.type = "button";
    no.dataset.close = "";
    no.textContent = "Keep it";
    yes.type = "button";
    yes.addEventListener("click", () => toApi(form));
    row.append(yes, no);
    body.append(title, row);
    dialog.showModal();
  }

  // A field's value as the API wants it; undefined where it is to be left out.
  function valueOf(input) {
    const kind = input.dataset.kind;
    if (kind === "flag") {
      const wanted = String(input.checked);
      return wanted === input.dataset.default ? undefined : input.checked;
    }
    const text = input.value.trim();
    if (text === "" || text === input.dataset.default) return undefined;
    const number = (value) => (/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(value) ? Number(value) : value);
    switch (kind) {
      case "number":
      case "part":
      case "number-or-text":
        return number(text);
      case "list":
        return text.split(/[,;\s]+/).filter(Boolean);
      case "numbers":
        return text.split(/[,;\s]+/).filter(Boolean).map(number);
      case "json":
        return JSON.parse(text);
      case "json-or-text":
        return /^[[{]/.test(text) ? JSON.parse(text) : text;
      default:
        return text;
    }
  }

  function collect(form) {
    const found = {};
    const switches = new Map();
    for (const input of form.querySelectorAll('[data-kind="switch"]')) switches.set(input.name, input.checked);
    for (const input of form.querySelectorAll("[data-kind]")) {
      if (input.dataset.kind === "switch") continue;
      const [name, part] = input.name.split(".");
      if (part && switches.get(name) === false) continue;
      let value;
      try {
        value = valueOf(input);
      } catch {
        throw Object.assign(new Error(`${input.name}: this is not JSON`), { field: input.name });
      }
      if (value === undefined) continue;
      if (part) found[name] = { ...found[name], [part]: value };
      else found[name] = value;
    }
    for (const [name, on] of switches) if (!on) found[name] = null;
    for (const input of form.querySelectorAll("select[data-kind][name=norm], select[data-kind][name=method]")) found[input.name] = input.value;
    return found;
  }

  function refuse(form, problem, status) {
    const note = form.querySelector("[data-problem]");
    note.textContent = inWords(problem, status);
    note.hidden = false;
    const field = String(problem.field || "").replace(/^(spec|body)\./, "");
    const names = [field, field.split(".").slice(0, 2).join("."), field.split(".")[0]];
    const input = names.map((name) => form.elements.namedItem(name)).find((found) => found instanceof HTMLElement);
    if (input) {
      input.closest("details")?.setAttribute("open", "");
      input.setAttribute("aria-invalid", "true");
      input.focus();
    } else {
      note.scrollIntoView({ block: "center" });
    }
  }

  function certification(form) {
    const data = new FormData();
    const property = form.elements.property.files[0];
    for (const name of property ? ["model"] : ["model", "dataset", "dataset_labels"]) {
      const file = form.elements[name].files[0];
      const known = form.elements[`${name}_id`]?.value;
      if (known) data.append(`${name}_id`, known);
      else if (file) data.append(name, file, file.name);
    }
    for (const file of form.elements.model_data.files) data.append("model_data", file, file.name);
    let spec = collect(form);
    if (property) {
      // A property says itself what is to be shown.
      data.append("property", property, property.name);
      // Not form.dataset: a form with a field of that name has the field there.
      const known = form.getAttribute("data-property").split(" ");
      spec = Object.fromEntries(Object.entries(spec).filter(([name]) => known.includes(name)));
    }
    data.append("spec", JSON.stringify(spec));
    if (form.elements.force.checked) data.append("force", "true");
    return data;
  }

  function send(form) {
    for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
    form.querySelector("[data-problem]").hidden = true;
    let body;
    try {
      body = form.getAttribute("data-submit") === "train" ? JSON.stringify(collect(form)) : certification(form);
    } catch (error) {
      refuse(form, { detail: error.message, field: error.field }, 0);
      return;
    }
    const request = new XMLHttpRequest();
    const button = form.querySelector("button");
    const sent = form.querySelector("[data-sent]");
    request.open("POST", form.getAttribute("action"));
    request.setRequestHeader("X-CSRF-Token", token);
    request.setRequestHeader("Accept", "application/json");
    if (typeof body === "string") request.setRequestHeader("Content-Type", "application/json");
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => {
      if (sent && event.lengthComputable) {
        sent.hidden = false;
        sent.value = event.loaded / event.total;
      }
    });
    request.addEventListener("loadend", () => {
      button.disabled = false;
      if (sent) sent.hidden = true;
      if (request.status === 200 || request.status === 202) location.assign(`/jobs/${request.response.id}/view`);
      else if (request.status === 0) refuse(form, { detail: "The service does not answer." }, 0);
      else refuse(form, request.response || {}, request.status);
    });
    button.disabled = true;
    request.send(body);
  }

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.matches("[data-api]")) {
      event.preventDefault();
      if (form.dataset.confirm) ask(form);
      else toApi(form);
    } else if (form.matches("[data-submit]")) {
      event.preventDefault();
      send(form);
    }
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-close]")) dialog.close();
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.target.id === "dialog-body") dialog.showModal();
  });
  document.addEventListener("htmx:responseError", (event) => {
    const { xhr } = event.detail;
    if (xhr.status === 401) {
      location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
      return;
    }
    let problem = {};
    try {
      problem = JSON.parse(xhr.responseText);
    } catch {
      // what is said then is the status
    }
    say(inWords(problem, xhr.status));
  });
  document.addEventListener("htmx:sendError", () => say("The service does not answer."));
})();
