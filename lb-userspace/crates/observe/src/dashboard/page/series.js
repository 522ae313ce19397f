// The figures of the last five minutes, for the shown parts: requested once, and then continued by the
// update of each second.

import { SECONDS } from './charts.js';

const LETTERS = {
  up: 'u', backup: 'b', suspect: 's', held: 'h', draining: 'd', removing: 'r', disabled: 'o',
  down: 'x', unresolved: 'n',
};

const FIGURES = ['packets', 'bytes', 'new_flows'];

/** What is known: by `node`, `service NAME` and so on. */
const known = new Map();
/** The services whose backends are followed. */
const followed = new Set();
let number = 0;
let failures = new Map();

const key = (...parts) => JSON.stringify(parts);

export const ofNode = () => known.get(key('node'));
export const ofDropped = () => known.get(key('all', 'dropped'));
export const ofReason = (kind, reason) => known.get(key(kind, reason));
export const ofService = (name) => known.get(key('service', name));
export const ofBackend = (name, address) => known.get(key('service', name, address));

/** Begins anew: lbd is another, or it was away. */
export function begin() {
  known.clear();
  failures = new Map();
  number = 0;
  load('totals=true');
  for (const name of followed) follow(name);
}

/** Follows the backends of a service, too. */
export function follow(name) {
  followed.add(name);
  load(`service=${encodeURIComponent(name)}`);
}

/** Forgets them. */
export function unfollow(name) {
  followed.delete(name);
  for (const its of [...known.keys()]) {
    const parts = JSON.parse(its);
    if (parts[0] === 'service' && parts[1] === name && parts.length > 2) known.delete(its);
  }
}

async function load(query) {
  try {
    const answer = await fetch(new URL(`samples?${query}`, import.meta.url));
    if (answer.ok) take(await answer.json());
  } catch {
    // lbd is gone for the moment: the next one requests them again.
  }
}

function take(page) {
  // What has come by the stream meanwhile is newer.
  const put = (its, series) => {
    const now = known.get(its);
    const late = now ? now.packets.slice(now.packets.length - Math.max(0, number - page.number)) : [];
    if (late.length && now) {
      for (const figure of FIGURES) series[figure].push(...now[figure].slice(-late.length));
      if (now.states) series.states += now.states.slice(-late.length);
    }
    known.set(its, series);
  };
  if (page.node) put(key('node'), page.node);
  for (const kind of ['passed', 'dropped']) {
    for (const [reason, series] of Object.entries(page[kind])) put(key(kind, reason), series);
  }
  put(key('all', 'dropped'), sum(Object.values(page.dropped)));
  for (const [name, service] of Object.entries(page.services)) {
    const { backends, ...total } = service;
    put(key('service', name), total);
    for (const [address, series] of Object.entries(backends ?? {})) {
      put(key('service', name, address), series);
    }
  }
}

function sum(all) {
  const length = Math.max(0, ...all.map((series) => series.packets.length));
  const total = {};
  for (const figure of FIGURES) {
    total[figure] = Array.from({ length }, (_, n) =>
      all.reduce((so, series) => so + (series[figure].at(n - length) ?? 0), 0));
  }
  return total;
}

/** Takes one more second. */
export function advance(node) {
  if (node.number === number) return;
  const seconds = number && node.number > number ? Math.min(node.number - number, SECONDS) : 1;
  number = node.number;
  const push = (its, rate, letter) => {
    let series = known.get(its);
    if (!series) {
      series = { packets: [], bytes: [], new_flows: [] };
      if (letter) series.states = '';
      known.set(its, series);
    }
    FIGURES.forEach((figure, n) => {
      const list = series[figure];
      for (let second = 0; second < seconds; second += 1) list.push(rate[n] ?? 0);
      if (list.length > SECONDS) list.splice(0, list.length - SECONDS);
    });
    if (letter) series.states = (series.states + letter.repeat(seconds)).slice(-SECONDS);
  };
  push(key('node'), node.rate);
  let dropped = [0, 0, 0];
  for (const kind of ['passed', 'dropped']) {
    for (const [reason, { rate }] of Object.entries(node[kind])) {
      push(key(kind, reason), rate);
      if (kind === 'dropped') dropped = [dropped[0] + rate[0], dropped[1] + rate[1], 0];
    }
  }
  push(key('all', 'dropped'), dropped);
  for (const [name, service] of Object.entries(node.services)) {
    push(key('service', name), service.rate);
    if (!followed.has(name)) continue;
    for (const [address, backend] of Object.entries(service.backends)) {
      const its = key('service', name, address);
      const failed = backend.check?.failed ?? 0;
      const before = failures.get(its) ?? failed;
      failures.set(its, failed);
      const letter = LETTERS[backend.state] ?? 'n';
      push(its, backend.rate, failed > before ? letter.toUpperCase() : letter);
    }
  }
}
