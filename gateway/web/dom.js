/** Makes and changes elements. It knows nothing of pictures. */

/**
 * @param {string} tag
 * @param {Object<string, any>} [props] attributes; `on` plus an event's name: a listener; `text`: the text content
 * @param {...(Node|string|null)} children
 * @returns {any}
 */
export function createElement(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  setProps(element, props);
  element.append(...children.filter((child) => child !== null));
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
  wanted.forEach((child, place) => {
    if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] ?? null);
  });
}

/** Whether the person asked for less movement. */
export function prefersStillness() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/** Lets the arrow keys, Home and End move the focus between the buttons of a group, beside the tab key.
 * @param {HTMLElement} group */
export function moveByArrows(group) {
  group.addEventListener("keydown", (event) => {
    const buttons = [...group.querySelectorAll("button")];
    const place = buttons.indexOf(/** @type {any} */ (document.activeElement));
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    let next = -1;
    if (event.key in steps) next = place + steps[/** @type {keyof steps} */ (event.key)];
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = buttons.length - 1;
    if (place < 0 || !buttons[next]) return;
    event.preventDefault();
    buttons[next].focus();
  });
}
