// The alerts, from all of the view: a pure function of the node.

import { keep, make, reshape, setText, set, shape } from './dom.js';
import { labelled, several } from './format.js';

/** As many are shown at once. */
const SHOWN = 8;

const NAMES = { error: 'Error', warning: 'Warning', note: 'Note' };

/** What is wrong with the node: `{ level, text }`, the worst first. */
export function find(node) {
  const found = [];
  const add = (level, text) => found.push({ level, text });
  if (node.error) add('error', `The last write failed, and is tried again each second: ${node.error}`);
  for (const { name, attached, mode } of node.interfaces) {
    if (!attached) add('error', `${name} has lost the balancer’s program: nothing is forwarded there`);
    else if (mode === 'generic') add('warning', `${name} runs XDP in generic mode, which is slower than native`);
  }
  for (const [name, service] of Object.entries(node.services)) addService(add, name, service);
  for (const router of node.routers) addRouter(add, router, node);
  for (const peer of node.peers) addPeer(add, peer);
  for (const [what, { used, capacity }] of Object.entries(node.usage)) {
    if (capacity > 0 && used >= 0.9 * capacity) {
      add('warning', `${used} of at most ${capacity} ${what} in use: raise limits.${what}`);
    }
  }
  if (node.draining_since) add('note', 'This node drains: its virtual routers are handed over, and it goes on forwarding');
  const order = ['error', 'warning', 'note'];
  return found.sort((a, b) => order.indexOf(a.level) - order.indexOf(b.level));
}

function addService(add, name, service) {
  const backends = Object.values(service.backends);
  if (backends.length === 0) return add('note', `${name} has no backends`);
  if (service.panic) {
    add('error', `${name} is in panic: ${service.up} of ${several(service.enabled, 'backend')} up, and checks are ignored`);
  } else if (service.enabled === 0) {
    add('error', `${name}: all backends are drained or disabled, and none takes new flows`);
  } else if (service.up === 0) {
    add('error', `${name}: no backend can take new flows`);
  } else if (!service.ready) {
    add('warning', `${name} is not ready: ${service.up} of ${several(service.enabled, 'backend')} up`);
  }
  if (service.on_backups) add('warning', `${name} is served by its backups: no other backend is up`);
  const bad = Object.entries(service.backends).filter(([, backend]) => isTrouble(backend));
  if (bad.length === 0 || service.up === 0 || service.panic) return;
  const [address, backend] = bad[0];
  const { state, why } = backend;
  add('warning', bad.length === 1
    ? `${name}: ${labelled(address, backend)} is ${state}${why ? ` (${why})` : ''}`
    : `${name}: ${bad.length} of ${several(backends.length, 'backend')} are in trouble`);
}

/** Whether a backend is not as its operator wants it. */
export function isTrouble(backend) {
  return ['down', 'unresolved', 'held', 'suspect'].includes(backend.state);
}

function addRouter(add, router, node) {
  if (router.state === 'fault') add('error', `Virtual router ${router.name} can't be active: ${router.cause}`);
  for (const problem of router.problems) add('warning', `Virtual router ${router.name}: ${problem}`);
  const elsewhere = node.peers.filter((peer) => peer.connected && peer.routers.some((its) => its.key === router.key && its.state === 'active'));
  if (router.state === 'active' && elsewhere.length > 0) {
    add('error', `Two nodes are active for ${router.name}: this one and ${elsewhere.map((peer) => peer.name).join(', ')}`);
  }
}

function addPeer(add, peer) {
  if (peer.refused) add('error', `Peer ${peer.name} is refused: ${peer.refused}`);
  else if (!peer.connected) add('warning', `Peer ${peer.name} is not there: its flows are not known here, nor this node's there`);
  else if (!peer.here || !peer.there) add('warning', `Peer ${peer.name} is not synced yet: a takeover at this moment may break flows`);
  for (const problem of peer.problems) add('error', `Peer ${peer.name} differs: ${problem}`);
}

/** Shows them, the first of many. */
export function show(all) {
  const list = document.querySelector('#alerts ul');
  const found = all.slice(0, SHOWN);
  if (all.length > SHOWN) {
    found.push({ level: all[SHOWN].level, text: `and ${all.length - SHOWN} more; 'Trouble only' shows the backends` });
  }
  keep(list, found, ({ text }) => text, () => {
    const picture = shape('note');
    const level = make('strong');
    const text = make('span');
    return { root: make('li', {}, picture, make('p', {}, level, ' ', text)), picture, level, text };
  }, (part, { level, text }) => {
    set(part.root, 'class', `alert ${level}`);
    reshape(part.picture, level);
    setText(part.level, NAMES[level]);
    setText(part.text, text);
  });
}
