// One backend: a row of its service's table, and what there is to know beside.

import { curve, strip, unwatch, watch } from './charts.js';
import { keep, make, reshape, setText, set, shape } from './dom.js';
import { bytes, clock, count, duration, labelled, micros, percent, short } from './format.js';
import * as series from './series.js';

/** The columns: name, class, and what it is for who wonders. */
export const COLUMNS = [
  ['Backend', 'who', 'Address; opens what there is to know beside'],
  ['State', 'state', 'What it does, and why'],
  ['Last 5 min', 'health', 'Its states; a mark at the top is a check that failed'],
  ['Weight', 'weight number', 'Its weight'],
  ['Share of ring and packets', 'share', 'Its slots of the ring, and its packets of the last second'],
  ['Packets/s', 'rate packets', 'Packets per second'],
  ['Bytes/s', 'rate bytes', 'Bytes per second'],
  ['New flows/s', 'rate flows', 'New flows per second'],
  ['Flows kept', 'kept', 'Older flows: slots of which it is the base owner, and pins'],
  ['Check', 'check', 'The last answer of its check, and how long it took'],
];

let rows = 0;

/** The row of a backend, and the one below it. */
export function create(service, address) {
  const id = `b${(rows += 1)}`;
  const label = make('span', { text: address });
  const button = make('button', { type: 'button', class: 'open', 'aria-expanded': 'false', 'aria-controls': id }, label);
  const picture = shape('up');
  const word = make('b');
  const why = make('small');
  const state = make('span', { class: 'badge' }, picture, word);
  const health = strip();
  const cells = {};
  const cell = (n, ...children) => {
    const [name, kind] = COLUMNS[n];
    const made = make(n === 0 ? 'th' : 'td', { class: kind, role: n === 0 ? 'rowheader' : 'cell', scope: n === 0 && 'row', 'data-label': name }, ...children);
    cells[kind.split(' ').at(-1)] = made;
    return made;
  };
  const rates = ['packets', 'bytes', 'flows'].map((kind) => ({ figure: make('span', { class: 'figure' }), curve: curve(kind) }));
  const ring = bar('ring', 'Its share of the slots of the ring');
  const traffic = bar('packets', 'Its share of the packets of the last second');
  const row = make(
    'tr',
    { role: 'row' },
    cell(0, button),
    cell(1, state, why),
    cell(2, health.root),
    cell(3),
    cell(4, ring.root, traffic.root),
    ...rates.map(({ figure, curve: its }, n) => cell(5 + n, make('div', { class: 'pair' }, its.root, figure))),
    cell(8),
    cell(9),
  );
  const more = make('td', { colspan: String(COLUMNS.length), role: 'cell' });
  const below = make('tr', { role: 'row', class: 'more', id, hidden: true }, more);
  const root = make('tbody', { role: 'rowgroup' }, row, below);
  const part = { root, row, button, label, picture, word, why, state, health, cells, rates, ring, traffic, more, below, service, address };
  button.addEventListener('click', () => toggle(part));
  watch(root, () => draw(part));
  part.leave = () => unwatch(root);
  return part;
}

function bar(name, title) {
  const fill = make('i');
  const figure = make('span');
  return { root: make('div', { class: 'bar-of', title }, make('span', { class: 'of', text: name }), make('span', { class: 'rail', 'aria-hidden': 'true' }, fill), figure), fill, figure };
}

function showBar(its, part, all) {
  its.fill.style.width = all > 0 ? `${Math.min(100, (100 * part) / all)}%` : '0';
  setText(its.figure, percent(part, all));
}

/** Brings the row up to date. */
export function update(part, backend, service, now) {
  part.latest = backend;
  setText(part.label, labelled(part.address, backend));
  set(part.row, 'class', `is-${backend.state}`);
  set(part.state, 'class', `badge ${backend.state}`);
  reshape(part.picture, backend.state);
  setText(part.word, backend.backup && backend.state !== 'backup' ? `${backend.state}, backup` : backend.state);
  const left = backend.deadline ? `at most ${duration((backend.deadline - now) / 1000)}` : '';
  const note = [backend.why, backend.has_flows ? left : ''].filter(Boolean).join(', ');
  setText(part.why, note);
  set(part.why, 'title', note || null);
  setText(part.cells.number, backend.weight);
  showBar(part.ring, backend.slots, service.slots);
  showBar(part.traffic, backend.rate[0], service.rate[0]);
  [short, bytes, short].forEach((format, n) => setText(part.rates[n].figure, format(backend.rate[n])));
  setText(part.cells.kept, kept(backend, service.slots));
  setText(part.cells.check, checked(backend.check));
  set(part.cells.check, 'title', backend.check?.last);
  if (part.root.lbSeen) draw(part);
  if (!part.below.hidden) facts(part, backend, now);
}

function draw(part) {
  const its = series.ofBackend(part.service, part.address);
  part.health.draw(its?.states);
  ['packets', 'bytes', 'new_flows'].forEach((figure, n) => part.rates[n].curve.draw(its?.[figure]));
}

/** What is left on a backend of older flows. */
export function kept(backend, slots) {
  const some = [];
  if (backend.base_slots) some.push(`${percent(backend.base_slots, slots)} of slots`);
  if (backend.pins || backend.pins_stale) some.push(`${backend.pins_stale ? '≥ ' : ''}${short(backend.pins)} pins${backend.pins_closing ? `, ${short(backend.pins_closing)} closing` : ''}`);
  if (backend.local) some.push(`${short(backend.local)} of this node`);
  // A number stays with its unit where the line breaks.
  return some.join(', ').replace(/(\d) /g, '$1\u00a0') || 'none';
}

function checked(check) {
  if (!check) return 'none';
  if (check.last == null) return `${check.kind}, not asked yet`;
  // What was wrong stands beside the state.
  if (check.last !== 'ok') return `${check.kind} failed`;
  return check.micros == null ? `${check.kind} ok` : `${check.kind} ${micros(check.micros)}`;
}

function toggle(part) {
  const open = part.below.hidden;
  part.below.hidden = !open;
  set(part.button, 'aria-expanded', String(open));
  if (!open) return;
  const list = make('dl', { class: 'facts' });
  const events = make('ol', { class: 'history' });
  part.more.replaceChildren(
    make('div', { class: 'split' }, make('div', {}, make('h4', { text: 'Figures' }), list), make('div', {}, make('h4', { text: 'Last transitions' }), events)),
  );
  part.list = list;
  part.events = events;
  facts(part, part.latest, Date.now());
  requestHistory(part);
}

/** The backend's last events. */
export async function requestHistory(part) {
  if (part.below.hidden) return;
  const query = new URLSearchParams({ service: part.service, backend: part.address });
  try {
    const answer = await fetch(new URL(`history?${query}`, import.meta.url));
    if (!answer.ok) return;
    const events = await answer.json();
    const now = Date.now();
    if (events.length === 0) events.push({ seq: 0, message: 'nothing since lbd started' });
    keep(part.events, events, ({ seq }) => seq, ({ at }) => {
      const time = make('time', at ? { datetime: at, text: clock(Date.parse(at), now) } : {});
      const text = make('span');
      const cause = make('small');
      return { root: make('li', {}, time, make('p', {}, text, ' ', cause)), text, cause };
    }, (made, { message, cause }) => {
      setText(made.text, message);
      setText(made.cause, cause ?? '');
    });
  } catch {
    // lbd is gone for the moment, which the page shows elsewhere.
  }
}

/** In mode nat both directions pass the node. */
function answers({ returned, connections }) {
  const all = [];
  if (returned) all.push(['Answers', `${count(returned[0])} packets, ${bytes(returned[1])}`]);
  if (connections) {
    const [open, accepted, refused] = connections.map(count);
    all.push(['Connections', `${open} open; ${accepted} accepted, ${refused} refused so far`]);
  }
  return all;
}

function facts(part, backend, now) {
  const { check } = backend;
  const all = [
    ['Sent', `${count(backend.total[0])} packets, ${bytes(backend.total[1])}`],
    ...answers(backend),
    ['New flows', count(backend.total[2])],
    ['Slots', `${count(backend.slots)} for new flows, ${count(backend.base_slots)} for older ones`],
    ['Pins', `${backend.pins_stale ? 'at least ' : ''}${count(backend.pins)}${backend.pins_closing ? `, ${count(backend.pins_closing)} of them closing` : ''}`],
    ['Packets without a pin', count(backend.unpinned)],
    ['SYN retransmissions', count(backend.resent)],
    ['SYNs as second choice', count(backend.second)],
    ['Next hop', backend.mac ? `${backend.mac} by ${backend.interface}` : 'not known'],
  ];
  if (check) {
    all.push(
      ['Checks', `${count(check.ok)} good, ${count(check.failed)} bad`],
      ['Condition since', `${clock(check.since, now)} (${duration((now - check.since) / 1000)})`],
      ['Times down', count(check.went_down)],
    );
    if (check.against) all.push(['Answers against it', `${check.against} of ${check.of} in a row`]);
  }
  keep(part.list, all, ([name]) => name, ([name]) => {
    const value = make('dd');
    return { root: make('div', {}, make('dt', { text: name }), value), value };
  }, (made, [, value]) => setText(made.value, value));
}
