// The page works without this: it follows Airflow's theme, opens Airflow's pages from the frame, and fills in live progress.
"use strict";

function above() {
  try {
    return window.parent !== window && window.parent.document ? window.parent : null;
  } catch {
    return null; // a frame of another origin
  }
}

function takeTheme() {
  const airflow = above();
  const root = document.documentElement;
  if (airflow) {
    const frame = airflow.document.documentElement;
    const isDark = frame.classList.contains("dark") || frame.dataset.theme === "dark";
    root.dataset.theme = isDark ? "dark" : "light";
    root.dataset.framed = "";
    return;
  }
  const chosen = window.localStorage.getItem("theme");
  if (chosen === "dark" || chosen === "light") {
    root.dataset.theme = chosen;
  }
}

function followTheme() {
  takeTheme();
  const airflow = above();
  if (airflow) {
    const options = { attributes: true, attributeFilter: ["class", "data-theme"] };
    new MutationObserver(takeTheme).observe(airflow.document.documentElement, options);
  }
}

// A frame may not lead the window elsewhere. A link in Airflow's own document may.
function openInAirflow(event) {
  const airflow = above();
  const link = event.target.closest("a[data-airflow]");
  if (!airflow || !link || event.defaultPrevented) {
    return;
  }
  event.preventDefault();
  const own = airflow.document.createElement("a");
  own.href = link.href;
  airflow.document.body.append(own);
  own.click();
  own.remove();
}

function fill(row, live) {
  for (const cell of row.querySelectorAll("[data-cell]")) {
    if (live[cell.dataset.cell] !== undefined) {
      cell.textContent = live[cell.dataset.cell];
    }
  }
  for (const part of row.querySelectorAll("[data-share]")) {
    part.setAttribute("width", live[part.dataset.share]);
  }
  const state = row.querySelector(".state");
  if (state) {
    state.className = `state ${live.state}`;
  }
}

async function refresh(row) {
  try {
    const answer = await fetch(row.dataset.live, { credentials: "same-origin" });
    if (answer.ok) {
      const live = await answer.json();
      fill(row, live);
      if (live.state === "passed" || live.state === "failed") {
        delete row.dataset.live;
      }
    }
  } catch {
    // the next look may succeed
  }
}

async function refreshAll() {
  const waiting = [...document.querySelectorAll("[data-live]")];
  const worker = async () => {
    while (waiting.length) {
      await refresh(waiting.shift());
    }
  };
  await Promise.all([worker(), worker(), worker(), worker()]);
  window.setTimeout(refreshAll, 15000);
}

followTheme();
document.addEventListener("DOMContentLoaded", () => {
  document.addEventListener("click", openInAirflow);
  for (const field of document.querySelectorAll("[data-submits]")) {
    field.addEventListener("change", () => field.form.submit());
  }
  refreshAll();
});
