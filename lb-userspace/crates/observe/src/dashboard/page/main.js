// The page: follows lbd's updates, and shows them.

import * as alerts from './alerts.js';
import { setText, set } from './dom.js';
import * as events from './events.js';
import { duration } from './format.js';
import { follow, merge } from './link.js';
import * as node from './node.js';
import * as series from './series.js';
import * as services from './services.js';

const main = document.querySelector('#main');
let current = null;
let due = false;

/** Draws once for all that has come until the browser draws. */
function draw() {
  if (due || !current) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    const found = alerts.find(current);
    setText(document.querySelector('#name'), current.name);
    setText(document.querySelector('#about'), `lbd ${current.version}, up ${duration(current.uptime)}`);
    const bad = found.filter(({ level }) => level !== 'note').length;
    const title = `${bad ? `(${bad}) ` : ''}${current.name} - lb`;
    if (document.title !== title) document.title = title;
    alerts.show(found);
    node.show(current);
    services.show(current);
    set(main, 'aria-busy', null);
  });
}

function take(view) {
  current = view;
  series.advance(current);
  draw();
}

follow({
  view(view) {
    // This page may be of a version that is gone.
    const version = document.documentElement.dataset.version;
    if (view.version !== version) return location.reload();
    series.begin();
    take(view);
  },
  patch(patch) {
    if (current) take(merge(current, patch));
  },
  happened(list) {
    events.add(list);
    for (const { service, backend } of list) if (service && backend) services.happened(service, backend);
  },
  missed: events.missed,
}, stand);

const WORDS = { live: 'live', waits: 'paused', lost: 'lbd does not answer' };

function stand(state, since) {
  const link = document.querySelector('#link');
  set(link, 'data-link', state);
  const at = state === 'lost' && current ? ` since ${new Date(since).toLocaleTimeString('en-GB')}` : '';
  setText(document.querySelector('#link-text'), WORDS[state] + at);
  document.body.classList.toggle('stale', state === 'lost');
}

const theme = document.querySelector('#theme');
for (const input of theme.querySelectorAll('input')) {
  input.checked = input.value === (document.documentElement.dataset.theme ?? 'auto');
}
theme.addEventListener('change', ({ target }) => {
  if (target.value === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = target.value;
  try {
    localStorage.setItem('lb-theme', target.value);
  } catch {
    // It holds until the page is loaded again.
  }
});
