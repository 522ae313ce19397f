// What has happened, the last first, as it happens.

import { make, shape } from './dom.js';
import { clock, words } from './format.js';

/** Events that are shown. */
const SHOWN = 200;

const list = document.querySelector('#events ol');
const quiet = document.querySelector('#events-quiet');
let last = 0;

quiet.addEventListener('change', () => list.classList.toggle('quiet', quiet.checked));

/** Takes some, oldest first. One that is shown already is not shown again. */
export function add(events) {
  for (const event of events) {
    if (event.seq <= last) continue;
    last = event.seq;
    list.prepend(item(event));
  }
  while (list.children.length > SHOWN) list.lastElementChild.remove();
}

function item({ at, level, kind, message, cause }) {
  const time = make('time', { datetime: at, text: clock(Date.parse(at), Date.now()) });
  const what = make('span', { class: 'kind', text: words(kind) });
  const line = make('p', {}, make('span', { text: message }), ' ', make('small', { text: cause }));
  const mark = make('span', { class: 'mark', title: level }, shape(level), make('span', { class: 'hidden', text: level }));
  return make('li', { class: level }, time, mark, line, what);
}

/** So many were not received. */
export function missed(number) {
  list.prepend(make('li', { class: 'warning' }, make('p', { text: `${number} events were too many to be shown` })));
}
