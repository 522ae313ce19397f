// Elements. All data from lbd becomes text by textContent, and never markup.

const SVG = 'http://www.w3.org/2000/svg';

/** An element with attributes and children; `text` is its text, `class` its class. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'text') element.textContent = value;
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** Sets a text; an equal one is not touched, so that a selection in it lives. */
export function setText(element, text) {
  const wanted = String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Sets an attribute, or takes it away for null. */
export function set(element, name, value) {
  if (value == null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/**
 * Makes the children of `parent` those of `items`, in their order: each item keeps its element as
 * long as it has the same key. An element is made by `create(item)`, which gives an object with
 * `root`, and brought up to date by `update(object, item)`.
 */
export function keep(parent, items, key, create, update) {
  const known = parent.lbParts ?? (parent.lbParts = new Map());
  const keys = new Set(items.map(key));
  for (const [old, part] of known) {
    if (!keys.has(old)) {
      part.leave?.();
      part.root.remove();
      known.delete(old);
    }
  }
  // What stands before them, as a table's head, stays there.
  let place = [...parent.children].find((child) => child.lbKept) ?? null;
  for (const item of items) {
    const its = key(item);
    let part = known.get(its);
    if (!part) {
      part = create(item);
      part.root.lbKept = true;
      known.set(its, part);
    }
    if (part.root === place) place = place.nextElementSibling;
    else parent.insertBefore(part.root, place);
    update(part, item);
  }
  return known;
}

/** The shape of a state, beside its word: the colour alone is not enough. */
const SHAPES = {
  up: 'M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2Z',
  backup: 'M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2Zm0 2.500a3.500 3.5 0 1 1 0 7 3.5 3.5 0 0 1 0-7Z',
  suspect: 'M8 1 15 8 8 15 1 8ZM7 4.500v4h2v-4ZM7 9.700v1.800h2V9.700Z',
  held: 'M3 2.500h3.800v11H3ZM9.200 2.500H13v11H9.200Z',
  draining: 'M1.500 3h13L8 14.500Z',
  removing: 'M1.500 3h13L8 14.500Zm3.400 2L8 10.5 11.1 5Z',
  disabled: 'M2.500 6.500h11v3h-11Z',
  down: 'M3.800 1.7 8 5.900l4.200-4.2 2.1 2.100L10.100 8l4.200 4.2-2.1 2.100L8 10.100l-4.2 4.2-2.1-2.100L5.900 8 1.7 3.800Z',
  unresolved: 'M8 1 15 8 8 15 1 8ZM8 3.8 3.8 8 8 12.2 12.2 8Z',
  error: 'M3.800 1.7 8 5.900l4.200-4.2 2.1 2.100L10.100 8l4.200 4.2-2.1 2.100L8 10.100l-4.2 4.2-2.1-2.100L5.900 8 1.7 3.800Z',
  warning: 'M8 1 15.5 14.500H.5ZM7 5.500v4.500h2V5.500Zm0 5.500v2h2v-2Z',
  note: 'M8 5a3 3 0 1 0 0 6 3 3 0 0 0 0-6Z',
};

/** A picture of a state; its word stands beside it. */
export function shape(name) {
  const path = svg('path', { d: SHAPES[name] ?? SHAPES.note, 'fill-rule': 'evenodd' });
  return svg('svg', { class: 'shape', viewBox: '0 0 16 16', 'aria-hidden': 'true' }, path);
}

/** Makes a picture that of another state. */
export function reshape(picture, name) {
  set(picture.firstElementChild, 'd', SHAPES[name] ?? SHAPES.note);
}
