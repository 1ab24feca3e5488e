/* What the history page does beyond links and forms: it stays current, searches while you type, and takes keys.
   Every page is complete without this script. Nothing of a message is ever read as script: fetched pages are parsed
   without running anything, and the Content-Security-Policy allows no other way to make markup from text. */
"use strict";
(() => {
  const policy = window.trustedTypes
    ? trustedTypes.createPolicy("stellarchat", { createHTML: (text) => text })
    : { createHTML: (text) => text };
  const parse = (text) => new DOMParser().parseFromString(policy.createHTML(text), "text/html");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector, within = document) => within.querySelector(selector);

  const say = (text) => {
    all(".toast").forEach((each) => each.remove());
    const toast = document.createElement("div");
    toast.className = "toast";
    toast.setAttribute("role", "status");
    toast.textContent = text;
    document.body.append(toast);
    setTimeout(() => toast.remove(), 2500);
  };

  // A page of the server as a document; null where there is nothing new. A session that has ended leads to the login.
  const load = async (url, { known, signal, live } = {}) => {
    const headers = { ...(known && { "If-None-Match": known }), ...(live && { "X-StellarChat-Live": "1" }) };
    const response = await fetch(url, { headers, signal, credentials: "same-origin", redirect: "manual" });
    if (response.type === "opaqueredirect" || response.status === 401) {
      location.reload();
      return null;
    }
    if (response.status !== 200) return null;
    return { etag: response.headers.get("ETag"), page: parse(await response.text()) };
  };

  // Replace the children that differ; those that stayed as they are keep focus, selection and open details.
  const merge = (old, fresh) => {
    const before = new Map(all(":scope > [id]", old).map((each) => [each.id, each]));
    const children = [...fresh.children].map((child) => {
      const kept = before.get(child.id);
      return kept && kept.dataset.version === child.dataset.version ? kept : document.importNode(child, true);
    });
    const isSame = children.length === old.children.length && children.every((child, i) => old.children[i] === child);
    if (!isSame) old.replaceChildren(...children);
  };

  // --- what is live: an element with data-live is asked for again while the page is looked at

  const follow = (element) => {
    let known = null;
    let failures = 0;
    const again = () => setTimeout(look, Number(element.dataset.every || 2000) * 2 ** Math.min(failures, 5));
    const look = async () => {
      if (!element.isConnected) return;
      if (document.hidden) {
        document.addEventListener("visibilitychange", look, { once: true });
        return;
      }
      try {
        const found = await load(element.dataset.live, { known, live: true });
        if (found) {
          known = found.etag;
          const fresh = one(`#${CSS.escape(element.id)}`, found.page);
          if (fresh) update(element, fresh);
        }
        failures = 0;
      } catch {
        failures += 1;
      }
      again();
    };
    again();
  };

  const update = (element, fresh) => {
    const atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
    if (element.dataset.mode === "append") {
      const added = all(":scope > .message:not(.growing)", fresh).filter((each) => !document.getElementById(each.id));
      all(":scope > .growing", element).forEach((each) => each.remove());
      element.append(...[...added, ...all(":scope > .growing, :scope > .tail", fresh)].map((each) => document.importNode(each, true)));
      all(":scope > .tail", element).slice(0, -1).forEach((each) => each.remove());
      element.dataset.live = fresh.dataset.live;
      added.forEach((each) => enrich(document.getElementById(each.id)));
      if (atEnd) scrollTo(0, document.documentElement.scrollHeight);
    } else {
      merge(element, fresh);
      element.hidden = fresh.hidden;
      all("[data-until-live]").forEach((each) => { each.hidden = !fresh.hidden; });
    }
    element.dataset.every = fresh.dataset.every || "2000";
  };

  // --- messages as Markdown, made by the server's helper process when they come into view

  const enriched = (place, rich) => {
    const isLong = one(".rest", place);
    place.replaceChildren(rich);
    if (!isLong) return;
    rich.classList.add("folded");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "plain";
    button.textContent = "Show the rest";
    button.addEventListener("click", () => { rich.classList.remove("folded"); button.remove(); });
    place.append(button);
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      watcher.unobserve(entry.target);
      load(entry.target.dataset.rich).then((found) => {
        const rich = found && one(".rich", found.page);
        if (rich) enriched(entry.target, document.importNode(rich, true));
      }).catch(() => {});
    }
  }, { rootMargin: "200px" });
  const enrich = (within) => all("[data-rich]", within).forEach((each) => watcher.observe(each));

  // --- search while typing

  const searching = (form) => {
    const input = one("input[name=q]", form);
    const results = document.getElementById("results");
    let timer, controller;
    const search = async () => {
      controller?.abort();
      controller = new AbortController();
      const url = `${form.action}?${new URLSearchParams(new FormData(form))}`;
      try {
        const found = await load(url, { signal: controller.signal });
        if (!found) return;
        history.replaceState(null, "", url);
        merge(results, one("#results", found.page));
      } catch (error) {
        if (error.name !== "AbortError") say("The search could not be made.");
      }
    };
    input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(search, 250);
    });
  };

  // --- keys

  const steps = () => all(".rows > li, .messages > .message");
  const marks = () => all("mark");
  const move = (elements, by) => {
    if (!elements.length) return;
    const at = elements.findIndex((each) => each.classList.contains("current"));
    const next = at < 0 ? (by > 0 ? 0 : elements.length - 1) : Math.min(elements.length - 1, Math.max(0, at + by));
    elements.forEach((each) => each.classList.remove("current"));
    const chosen = elements[next];
    chosen.classList.add("current");
    for (let each = chosen.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
    chosen.scrollIntoView({ block: "nearest" });
    (one("a.title, a.permalink", chosen) || chosen).focus({ preventScroll: true });
  };
  const keys = {
    "/": () => one(".find input, main form input[name=q]")?.focus(),
    "?": () => document.getElementById("keys")?.showModal(),
    j: () => move(steps(), 1),
    k: () => move(steps(), -1),
    n: () => move(marks(), 1),
    p: () => move(marks(), -1),
  };
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, textarea, select, [contenteditable]");
    if (isTyping && event.key === "Escape") event.target.blur();
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || one("dialog[open]")) return;
    const act = keys[event.key];
    if (act) {
      event.preventDefault();
      act();
    }
  });

  // --- copying

  const copy = async (button) => {
    const source = document.getElementById(button.dataset.copy);
    const text = source ? source.value ?? source.textContent : null;
    try {
      if (text === null) throw new Error("nothing to copy");
      await navigator.clipboard.writeText(text);
      say("Copied.");
    } catch {
      source?.select?.();
      say("This browser does not let the page copy; select the text instead.");
    }
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
    if (event.target.closest("[data-keys]")) document.getElementById("keys")?.showModal();
  });

  all("[data-script]").forEach((each) => { each.hidden = false; });
  all("[data-live]").forEach(follow);
  all("form[data-search]").forEach(searching);
  enrich(document);
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const hit = target && one("mark", target);
  if (hit) {
    for (let each = hit.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
    hit.classList.add("current");
    hit.scrollIntoView({ block: "center" });
  }
})();
