// The services and their backends. A service's table is made when it is opened: a hundred services of
// ten backends are cheap as long as they are closed.

import { isTrouble } from './alerts.js';
import * as row from './backend.js';
import { curve, unwatch, watch } from './charts.js';
import { keep, make, reshape, setText, set, shape } from './dom.js';
import { bytes, endpoint, percent, several, short } from './format.js';
import * as series from './series.js';

/** With more backends than this on the node, services are closed until they are opened. */
const FEW = 60;

const list = document.querySelector('#services-list');
const filter = document.querySelector('#filter');
const troubled = document.querySelector('#troubled');
const fold = document.querySelector('#fold');

/** What was opened or closed by hand. */
const chosen = new Map();
let last = null;

filter.addEventListener('input', again);
troubled.addEventListener('change', again);
fold.addEventListener('click', () => {
  if (!last) return;
  const names = Object.keys(last.services);
  const open = !names.some((name) => isOpen(name, last));
  for (const name of names) chosen.set(name, open);
  again();
});
document.addEventListener('keydown', (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if (event.key === '/' && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    filter.focus();
  } else if (event.key === 'Escape' && event.target === filter) {
    filter.value = '';
    again();
  }
});

function again() {
  if (last) show(last);
}

function isOpen(name, node) {
  if (chosen.has(name)) return chosen.get(name);
  const backends = Object.values(node.services).reduce((sum, its) => sum + Object.keys(its.backends).length, 0);
  return backends <= FEW;
}

/** Which of a service's backends match: all if the service does itself. */
function matches(name, service, words, onlyTrouble) {
  const own = `${name} ${endpoint(service.vip, service.port)} ${service.protocol} ${service.mode}`.toLowerCase();
  const backends = Object.entries(service.backends);
  const rest = words.filter((word) => !own.includes(word));
  const some = backends.filter(([address, backend]) => {
    if (onlyTrouble && !isTrouble(backend)) return false;
    const its = `${address} ${backend.name ?? ''} ${backend.state} ${backend.why ?? ''} ${backend.backup ? 'backup' : ''}`.toLowerCase();
    return rest.every((word) => its.includes(word));
  });
  const itself = rest.length === 0 && !onlyTrouble;
  const trouble = onlyTrouble && rest.length === 0 && (service.panic || !service.ready);
  return some.length > 0 || itself || trouble ? some : null;
}

/** Shows them. */
export function show(node) {
  last = node;
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const narrow = words.length > 0 || troubled.checked;
  const all = Object.entries(node.services);
  const shown = [];
  for (const [name, service] of all) {
    const backends = matches(name, service, words, troubled.checked);
    if (backends) shown.push({ name, service, backends });
  }
  const total = all.reduce((sum, [, service]) => sum + Object.keys(service.backends).length, 0);
  const found = shown.reduce((sum, { backends }) => sum + backends.length, 0);
  const totals = `${several(all.length, 'service')}, ${several(total, 'backend')}`;
  setText(document.querySelector('#services-count'), narrow ? `${shown.length} of ${totals.replace(', ', `, ${found} of `)}` : totals);
  const none = document.querySelector('#services-none');
  none.hidden = shown.length > 0;
  if (!none.hidden) {
    setText(none, all.length === 0
      ? 'No service yet. Add one with: lbctl service add'
      : 'Nothing matches. Escape clears the filter.');
  }
  const open = all.some(([name]) => isOpen(name, node));
  setText(fold, open ? 'Close all' : 'Open all');
  fold.hidden = all.length === 0;
  keep(list, shown, ({ name }) => name, ({ name }) => create(name), (part, its) => update(part, its, node, narrow && words.length > 0));
}

function create(name) {
  const picture = shape('up');
  const title = make('span', { class: 'name', text: name });
  const address = make('span', { class: 'address' });
  const kind = make('span', { class: 'kind muted' });
  const word = make('span');
  const standing = make('span', { class: 'badge' }, picture, word);
  const rates = ['packets', 'bytes', 'flows'].map((its) => ({ figure: make('b'), curve: curve(its), unit: { packets: 'packets/s', bytes: '/s', flows: 'new flows/s' }[its] }));
  const figures = rates.map((rate) =>
    make('span', { class: 'rate' }, rate.curve.root, make('span', {}, rate.figure, make('small', { text: ` ${rate.unit}` }))));
  const summary = make(
    'summary',
    {},
    make('span', { class: 'titles' }, make('h3', {}, title), address, kind),
    standing,
    make('span', { class: 'rates' }, ...figures),
  );
  const body = make('div', { class: 'body' });
  const root = make('details', { class: 'card service' }, summary, body);
  root.dataset.service = name;
  const part = { root, summary, picture, address, kind, word, standing, rates, body, name };
  // By hand only: what the script sets is no choice.
  summary.addEventListener('click', (event) => {
    event.preventDefault();
    chosen.set(name, !root.open);
    again();
  });
  watch(root, () => draw(part));
  part.leave = () => {
    unwatch(root);
    close(part);
  };
  return part;
}

function close(part) {
  if (!part.table) return;
  series.unfollow(part.name);
  for (const its of part.table.lbParts?.values() ?? []) its.leave();
  part.body.replaceChildren();
  part.table = null;
}

function update(part, { name, service, backends }, node, found) {
  const all = Object.values(service.backends);
  setText(part.address, `${service.protocol} ${endpoint(service.vip, service.port)}`);
  const flux = service.flux ? `, ${percent(service.flux, service.slots)} of the ring in flux` : '';
  setText(part.kind, `${service.mode}${service.udp ? `, ${service.udp}` : ''}${flux}`);
  const [level, words] = stand(service, all);
  set(part.standing, 'class', `badge ${level}`);
  reshape(part.picture, level);
  setText(part.word, words);
  [short, bytes, short].forEach((format, n) => setText(part.rates[n].figure, format(service.rate[n])));
  if (part.root.lbSeen) draw(part);
  const open = chosen.has(name) ? chosen.get(name) : found || isOpen(name, node);
  if (part.root.open !== open) part.root.open = open;
  if (!open) return close(part);
  if (!part.table) fill(part);
  part.empty.hidden = all.length > 0;
  part.table.hidden = all.length === 0;
  keep(
    part.table,
    backends,
    ([address]) => address,
    ([address]) => row.create(name, address),
    (its, [, backend]) => row.update(its, backend, service, node.at),
  );
}

function draw(part) {
  const its = series.ofService(part.name);
  ['packets', 'bytes', 'new_flows'].forEach((figure, n) => part.rates[n].curve.draw(its?.[figure]));
}

/** How a service stands: a state's name, and words. */
function stand(service, backends) {
  const up = `${service.up} of ${service.enabled} up`;
  if (backends.length === 0) return ['disabled', 'no backends'];
  if (service.panic) return ['down', `panic, ${up}`];
  if (service.enabled === 0) return ['down', 'all drained or disabled'];
  if (service.up === 0) return ['down', up];
  if (!service.ready) return ['suspect', `not ready, ${up}`];
  if (service.on_backups) return ['backup', `on backups, ${up}`];
  return [service.up < service.enabled ? 'suspect' : 'up', up];
}

function fill(part) {
  const heads = row.COLUMNS.map(([name, kind, title]) => make('th', { role: 'columnheader', scope: 'col', class: kind, title, text: name }));
  const caption = make('caption', { class: 'hidden', text: `Backends of ${part.name}` });
  const head = make('thead', { role: 'rowgroup' }, make('tr', { role: 'row' }, ...heads));
  // Each backend has a row group of its own, after the heads.
  part.table = make('table', { role: 'table', class: 'backends' }, caption, head);
  part.empty = make('p', { class: 'empty', text: `No backend yet. Add one with: lbctl backend add ${part.name} ADDRESS` });
  part.body.replaceChildren(part.table, part.empty);
  series.follow(part.name);
}

/** A backend has changed: its open history is requested again. */
export function happened(service, backend) {
  const table = list.lbParts?.get(service)?.table;
  const its = table?.lbParts?.get(backend);
  if (its) row.requestHistory(its);
}
