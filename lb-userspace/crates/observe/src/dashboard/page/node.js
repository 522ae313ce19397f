// The node as a whole: figures at a glance, drains, holders of the addresses, interfaces and maps, and
// the packets that went to no backend.

import { isTrouble } from './alerts.js';
import { kept } from './backend.js';
import { curve } from './charts.js';
import { keep, make, reshape, setText, set, shape } from './dom.js';
import { bytes, clock, count, duration, labelled, micros, percent, several, short, words } from './format.js';
import * as series from './series.js';

const find = (query) => document.querySelector(query);

/** What the reasons mean. */
const REASONS = {
  not_a_service: 'No service has this address, port and protocol',
  not_ip: 'Neither IPv4 nor IPv6: ARP and the like',
  protocol: 'Neither TCP nor UDP nor an ICMP error',
  other_host: 'The frame is for another MAC address',
  vlan_depth: 'More than two VLAN tags',
  truncated: 'The frame ends before its headers do',
  malformed: 'A header contradicts itself',
  extension_headers: 'More IPv6 extension headers than are followed',
  fragment: 'A fragment of a packet for the node itself',
  return_untranslated: 'The answer of a backend in mode nat, to the node itself, without a route, or with a TTL of 1',
  no_backend: 'The service has no backend that can take it',
  fragment_without_first: 'A fragment whose first fragment was not seen',
  too_big: 'Too big for the way to the backend, and no error may be sent',
  ttl_exceeded: 'Its time to live has run out, and no error may be sent',
  too_big_replied: 'Too big for the way to the backend; its sender got an ICMP error',
  ttl_exceeded_replied: 'Its time to live has run out; its sender got an ICMP error',
  icmp_rate_limited: 'Its sender would have to get an ICMP error, and no more may be sent now',
  icmp_bad_source: 'Its sender would have to get an ICMP error, and its source is no address that may get one',
  no_headroom: 'The frame has no room for the new headers',
  tx_failed: 'The interface that the packet came by did not transmit it',
  redirect_failed: 'Another interface did not take the packet from XDP',
  unpinnable: 'A new flow that can be neither pinned nor sent to its slot\'s base owner, which is down',
  hairpin: 'Mode nat: its client is the backend that it would go to',
};

/** Shows all of it. */
export function show(node) {
  role(node);
  tiles(node);
  drains(node);
  routers(node);
  peers(node);
  datapath(node);
  verdicts(node);
}

/** Why a Backup's rates are zero. */
function role(node) {
  const line = find('#role');
  line.hidden = node.routers.length === 0 || node.routers.some(({ state }) => state !== 'backup');
  if (line.hidden) return;
  const holds = (peer, key) => peer.connected && peer.routers.some((its) => its.key === key && its.state === 'active');
  const active = node.routers.map(({ key, active: address }) => node.peers.find((peer) => holds(peer, key))?.name ?? address);
  const names = [...new Set(active.filter(Boolean))].join(', ');
  setText(line, `Backup: the Active node${names ? ` (${names})` : ''} forwards, and rates here are zero until this node takes over.`);
}

function tiles(node) {
  const backends = Object.values(node.services).flatMap((service) => Object.values(service.backends));
  const up = backends.filter((backend) => backend.state === 'up' || backend.state === 'backup').length;
  const trouble = backends.filter(isTrouble).length;
  const dropped = Object.values(node.dropped).reduce((sum, { rate }) => sum + rate[0], 0);
  const its = series.ofNode();
  const all = [
    { name: 'Packets', unit: '/s', value: short(node.rate[0]), kind: 'packets', list: its?.packets },
    { name: 'Traffic', unit: '/s', value: bytes(node.rate[1]), kind: 'bytes', list: its?.bytes },
    { name: 'New flows', unit: '/s', value: short(node.rate[2]), kind: 'flows', list: its?.new_flows },
    { name: 'Dropped', unit: '/s', value: short(dropped), kind: 'dropped', list: series.ofDropped()?.packets },
    {
      name: 'Backends up', unit: ` of ${backends.length}`, value: up,
      note: trouble ? `${trouble} in trouble` : up < backends.length ? `${backends.length - up} taken out` : 'all of them',
      bad: trouble > 0,
    },
    {
      name: 'Pins', unit: '', value: short(node.usage.pins.used),
      note: `${percent(node.usage.pins.used, node.usage.pins.capacity)} of the capacity`,
    },
  ];
  keep(find('.tiles'), all, ({ name }) => name, ({ name, kind }) => {
    const value = make('b');
    const unit = make('small');
    const note = make('span', { class: 'note' });
    const drawn = kind ? curve(kind) : null;
    const figure = make('dd', {}, make('span', {}, value, unit), drawn ? drawn.root : note);
    return { root: make('div', { class: 'tile' }, make('dt', { text: name }), figure), value, unit, note, drawn };
  }, (part, { value, unit, note, list, bad }) => {
    setText(part.value, value);
    setText(part.unit, unit);
    part.drawn?.draw(list);
    if (note) setText(part.note, note);
    part.root.classList.toggle('bad', Boolean(bad));
  });
}

function drains(node) {
  const all = [];
  for (const [service, { backends, slots }] of Object.entries(node.services)) {
    for (const [address, backend] of Object.entries(backends)) {
      if (backend.state === 'draining' || backend.state === 'removing') all.push({ service, address, backend, slots });
    }
  }
  find('#drains').hidden = all.length === 0;
  keep(find('.drains'), all, ({ service, address }) => JSON.stringify([service, address]), ({ service }) => {
    const whom = make('span');
    const picture = shape('draining');
    const word = make('b');
    const left = make('span', { class: 'left' });
    const rail = make('i');
    const gauge = make('span', { class: 'rail', 'aria-hidden': 'true' }, rail);
    const rate = make('span', { class: 'muted' });
    const root = make('li', {}, make('span', { class: 'badge' }, picture, word), make('span', { class: 'whom' }, make('b', { text: service }), ' ', whom), gauge, left, rate);
    return { root, whom, picture, word, left, rail, rate };
  }, (part, { address, backend, slots }) => {
    setText(part.whom, labelled(address, backend));
    const { state } = backend;
    set(part.word.parentElement, 'class', `badge ${state}`);
    reshape(part.picture, state);
    setText(part.word, state);
    const done = !backend.has_flows && !backend.unsynced;
    part.rail.style.width = slots > 0 ? `${(100 * backend.base_slots) / slots}%` : '0';
    const left = backend.unsynced ? 'unknown, only the Active sees them' : kept(backend, slots);
    setText(part.left, done ? 'no flow left' : `flows left: ${left}`);
    const forced = backend.deadline && !done ? `, ends in ${duration((backend.deadline - node.at) / 1000)} at the latest` : '';
    const certain = backend.drain_ends_in === undefined ? '' : `, certain in ${duration(backend.drain_ends_in)}`;
    const limit = backend.silent ? `, no flow with a packet for ${duration(backend.drain_silence)}${certain}` : forced;
    setText(part.rate, `${short(backend.rate[0])} packets/s${limit}`);
  });
}

const STATES = { active: ['up', 'Active'], backup: ['backup', 'Backup'], fault: ['down', 'Fault'], initialize: ['disabled', 'Not started'] };

/** A table: a row for each virtual router, a column for each node. */
function routers(node) {
  const box = find('#vrrp .scroll');
  const nodes = [{ name: node.name, here: true }, ...node.peers.map((peer) => ({ name: peer.name, peer }))];
  const shapeOfTable = JSON.stringify([nodes.map(({ name }) => name), node.routers.length > 0]);
  if (box.lbTable !== shapeOfTable) {
    box.lbTable = shapeOfTable;
    if (node.routers.length === 0) {
      const vips = new Set(Object.values(node.services).map(({ vip }) => vip));
      const list = [...vips].join(', ');
      box.replaceChildren(make('p', { class: 'empty', text: `No virtual router is configured: this node does not know who holds ${vips.size > 6 ? several(vips.size, 'address', 'addresses') : list || 'addresses'}.` }));
      return;
    }
    const heads = nodes.map(({ name, here }) => make('th', { scope: 'col' }, name, make('small', { text: here ? ' this node' : '' })));
    box.replaceChildren(make('table', { class: 'routers' },
      make('caption', { class: 'hidden', text: 'Virtual routers by node' }),
      make('thead', {}, make('tr', {}, make('th', { scope: 'col', text: 'Addresses' }), ...heads)),
      make('tbody')));
  }
  if (node.routers.length === 0) return;
  keep(box.querySelector('tbody'), node.routers, ({ name, key }) => `${name} ${key} ${nodes.length}`, (router) => {
    const addresses = make('b');
    const name = make('small');
    const holder = make('small');
    const cells = nodes.map(() => {
      const picture = shape('disabled');
      const word = make('b');
      const note = make('small');
      return { root: make('td', {}, make('span', { class: 'badge' }, picture, word), note), picture, word, note };
    });
    const root = make('tr', {}, make('th', { scope: 'row' }, addresses, name, holder), ...cells.map((cell) => cell.root));
    root.dataset.router = router.name;
    return { root, addresses, name, holder, cells };
  }, (part, router) => {
    setText(part.addresses, router.addresses.map((address) => address.replace(/\/(32|128)$/, '')).join(', '));
    setText(part.name, `${router.name}, ${router.key}, ${router.interface}`);
    // One that is no peer, as keepalived, has no column.
    const isShown = nodes.some(({ peer }) => peer?.connected && peer.routers.some((its) => its.key === router.key && its.state === 'active'));
    setText(part.holder, router.active && !isShown ? `active on ${router.active}` : '');
    nodes.forEach(({ peer }, n) => {
      const its = peer ? peer.routers.find(({ key }) => key === router.key) : router;
      const gone = peer && !peer.connected;
      const [picture, word] = gone || !its ? ['disabled', gone ? 'Not connected' : 'Not there'] : STATES[its.state];
      const cell = part.cells[n];
      set(cell.word.parentElement, 'class', `badge ${picture}`);
      reshape(cell.picture, picture);
      setText(cell.word, word);
      const priority = its && !gone ? `priority ${its.priority}` : '';
      const base = !peer && router.priority !== router.base_priority ? ` of ${router.base_priority}` : '';
      const since = peer ? '' : `, since ${clock(router.since, node.at)}`;
      setText(cell.note, priority + base + since);
      set(cell.root, 'title', peer ? null : router.holds_back ?? router.cause);
    });
  });
}

function peers(node) {
  keep(find('.peers'), node.peers, ({ address }) => address, () => {
    const picture = shape('up');
    const word = make('b');
    const text = make('span');
    return { root: make('li', {}, make('span', { class: 'badge' }, picture, word), text), picture, word, text };
  }, (part, peer) => {
    const synced = peer.here && peer.there;
    const [picture, word] = peer.refused ? ['down', 'refused']
      : !peer.connected ? ['down', 'gone']
      : synced ? ['up', 'synced'] : ['suspect', 'not synced'];
    set(part.word.parentElement, 'class', `badge ${picture}`);
    reshape(part.picture, picture);
    setText(part.word, word);
    const some = [`${peer.name} (${peer.address})`];
    if (peer.since) some.push(`${peer.connected ? 'there' : 'gone'} since ${clock(peer.since, node.at)}`);
    if (peer.connected && !synced) {
      some.push(`its flows here: ${peer.here ? 'all' : 'not all'}`, `ours there: ${peer.there ? 'all' : 'not all'}`);
    }
    if (peer.round_trip_micros && peer.connected) some.push(`round trip ${micros(peer.round_trip_micros)}`);
    if (peer.draining) some.push('draining');
    setText(part.text, some.join(', '));
  });
}

function datapath(node) {
  keep(find('.interfaces'), node.interfaces, ({ name }) => name, ({ name }) => {
    const picture = shape('up');
    const word = make('b');
    return { root: make('li', {}, make('span', { class: 'badge' }, picture, word), make('span', { text: name })), picture, word };
  }, (part, { attached, mode }) => {
    const state = !attached ? 'down' : mode === 'generic' ? 'suspect' : 'up';
    set(part.word.parentElement, 'class', `badge ${state}`);
    reshape(part.picture, state);
    setText(part.word, !attached ? 'not attached' : mode === 'tc' ? 'tc' : `XDP ${mode}`);
  });
  const usage = ['pins', 'backends', 'services'].map((name) => [name, node.usage[name]]);
  keep(find('.meters'), usage, ([name]) => name, ([name]) => {
    const rail = make('i');
    const figure = make('span', { class: 'figure' });
    return { root: make('div', { class: 'meter' }, make('span', { text: name }), make('span', { class: 'rail', 'aria-hidden': 'true' }, rail), figure), rail, figure };
  }, (part, [, { used, capacity }]) => {
    part.rail.style.width = capacity > 0 ? `${(100 * used) / capacity}%` : '0';
    part.root.classList.toggle('full', capacity > 0 && used >= 0.9 * capacity);
    setText(part.figure, `${count(used)} of ${count(capacity)}`);
  });
}

function verdicts(node) {
  const all = ['dropped', 'passed'].map((kind) => [kind, Object.entries(node[kind])]);
  keep(find('.reasons'), all, ([kind]) => kind, ([kind]) => {
    const title = kind === 'dropped' ? 'Dropped' : 'Passed to the node itself';
    const head = ['Reason', 'Packets/s', 'Packets'].map((text, n) => make('th', { scope: 'col', class: n ? 'number' : null, text }));
    const body = make('tbody');
    const table = make('table', { class: `reason ${kind}` }, make('caption', { text: title }), make('thead', {}, make('tr', {}, ...head)), body);
    const none = make('p', { class: 'empty', text: kind === 'dropped' ? 'Dropped: none' : 'Passed to the node itself: none' });
    return { root: make('div', {}, table, none), table, none, body };
  }, (part, [kind, reasons]) => {
    part.table.hidden = reasons.length === 0;
    part.none.hidden = reasons.length > 0;
    keep(part.body, reasons, ([reason]) => reason, ([reason]) => {
      const rate = make('span', { class: 'figure' });
      const drawn = curve(kind);
      const total = make('td', { class: 'number' });
      const name = make('th', { scope: 'row', title: REASONS[reason] ?? null, text: words(reason) });
      return { root: make('tr', {}, name, make('td', { class: 'rate' }, make('div', { class: 'pair' }, drawn.root, rate)), total), rate, drawn, total };
    }, (its, [reason, { rate, total }]) => {
      setText(its.rate, short(rate[0]));
      setText(its.total, count(total.packets));
      set(its.total, 'title', bytes(total.bytes));
      its.drawn.draw(series.ofReason(kind, reason)?.packets);
    });
  });
}
