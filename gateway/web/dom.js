/** Creates and changes elements. It imports no other module. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} tag
 * @param {Object<string, any>} [props] attributes; `on` plus an event's name: a listener; `text`: the text content
 * @param {...(Node|string|null|undefined|false)} children
 * @returns {any}
 */
export function createElement(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  setProps(element, props);
  for (const child of children) if (child) element.append(child);
  return element;
}

/**
 * Sets what differs: an attribute that is written again makes a screen reader speak again.
 * @param {any} element
 * @param {Object<string, any>} props false and null take an attribute away
 */
export function setProps(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), value);
    } else if (name === "text") {
      if (element.textContent !== value) element.textContent = value;
    } else if (value === false || value === null || value === undefined) {
      element.removeAttribute(name);
    } else {
      const text = value === true ? "" : String(value);
      if (element.getAttribute(name) !== text) element.setAttribute(name, text);
    }
  }
}

/** @param {string} id @returns {any} */
export function byId(id) {
  return document.getElementById(id);
}

/**
 * Gives a parent exactly these children, moving none that is in its place already: a moved element loses its focus.
 * @param {Element} parent
 * @param {Element[]} wanted
 */
export function syncChildren(parent, wanted) {
  const keep = new Set(wanted);
  for (const child of [...parent.children]) {
    if (!keep.has(child)) child.remove();
  }
  wanted.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
}

/** A drawing of 24 by 24 in the colour of the text. @param {string} path @returns {any} */
export function icon(path) {
  const svg = document.createElementNS(SVG, "svg");
  setProps(svg, { viewBox: "0 0 24 24", class: "icon", "aria-hidden": true, focusable: "false" });
  const line = document.createElementNS(SVG, "path");
  setProps(line, { d: path });
  svg.append(line);
  return svg;
}

export const ICONS = {
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01",
  camera: "M4 8h4l2-3h4l2 3h4v11H4zM12 17a4 4 0 1 0 0-8 4 4 0 0 0 0 8z",
  sliders: "M4 7h10M18 7h2M4 17h4M12 17h8M14 4v6M8 14v6",
  dice: "M5 5h14v14H5zM9 9h.01M15 15h.01M15 9h.01M9 15h.01M12 12h.01",
  star: "M12 4l2.5 5.2 5.7.8-4.1 4 1 5.7-5.1-2.7-5.1 2.7 1-5.7-4.1-4 5.7-.8z",
  close: "M6 6l12 12M18 6L6 18",
  up: "M12 19V5M6 11l6-6 6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  left: "M15 5l-7 7 7 7",
  right: "M9 5l7 7-7 7",
};

/** Whether the person asked for less movement. */
export function prefersReducedMotion() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/** @param {HTMLElement} element @param {ScrollLogicalPosition} [block] */
export function scrollTo(element, block = "start") {
  element.scrollIntoView({ behavior: prefersReducedMotion() ? "auto" : "smooth", block });
}

/** @param {() => void} act @param {number} [delayMs] @returns {() => void} acts once for all calls within the delay */
export function debounce(act, delayMs = 500) {
  /** @type {number|undefined} */
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, delayMs);
  };
}

/** Lets the arrow keys, Home and End move the focus between the buttons of a group, beside the tab key.
 * @param {HTMLElement} group @param {string} [selector] */
export function moveByArrows(group, selector = "button") {
  group.addEventListener("keydown", (event) => {
    const buttons = [...group.querySelectorAll(selector)];
    const index = buttons.indexOf(/** @type {any} */ (document.activeElement));
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    let next = -1;
    if (event.key in steps) next = index + steps[/** @type {keyof steps} */ (event.key)];
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = buttons.length - 1;
    if (index < 0 || !buttons[next]) return;
    event.preventDefault();
    /** @type {any} */ (buttons[next]).focus();
  });
}
