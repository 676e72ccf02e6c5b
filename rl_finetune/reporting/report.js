"use strict";
const themes = { "": "as the system", light: "light", dark: "dark" };
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const names = Object.keys(themes);
  const next = names[(names.indexOf(document.documentElement.dataset.theme || "") + 1) % names.length];
  document.documentElement.dataset.theme = next;
  theme.textContent = `Theme: ${themes[next]}`;
});

for (const gallery of document.querySelectorAll(".gallery")) {
  const pick = (name) => gallery.querySelector(`select.${name}`);
  const left = pick("left"), right = pick("right"), measure = pick("measure"), order = pick("order");
  const list = gallery.querySelector(".pairs"), overlay = gallery.querySelector(".overlay");

  const word = (select) => select.selectedOptions[0].textContent;
  const say = (slider) => slider.setAttribute("aria-valuetext", `${slider.value} % ${word(left)}, the rest ${word(right)}`);
  const showSides = () => {
    gallery.dataset.left = left.value;
    gallery.dataset.right = right.value;
    for (const tag of gallery.querySelectorAll(".tag-left")) tag.textContent = word(left);
    for (const tag of gallery.querySelectorAll(".tag-right")) tag.textContent = word(right);
    gallery.querySelectorAll(".frame input").forEach(say);
  };
  left.addEventListener("change", showSides);
  right.addEventListener("change", showSides);

  for (const frame of gallery.querySelectorAll(".frame")) {
    const slider = frame.querySelector("input");
    slider.addEventListener("input", () => {
      frame.style.setProperty("--at", `${slider.value}%`);
      say(slider);
    });
  }

  overlay?.addEventListener("change", () => {
    gallery.classList.toggle("maps", overlay.checked);
    gallery.querySelector(".legend").hidden = !overlay.checked;
  });

  const sort = () => {
    const sign = order.value === "worst" ? 1 : -1;
    const gain = (item) => JSON.parse(item.dataset.gains)[measure.value];
    list.append(...[...list.children].sort((a, b) => sign * (gain(a) - gain(b))));
  };
  measure?.addEventListener("change", sort);
  order?.addEventListener("change", sort);
  showSides();
  if (measure) sort();
}
