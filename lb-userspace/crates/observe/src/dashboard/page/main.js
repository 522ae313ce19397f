// The page: follows what lbd tells, and shows it.

import * as alerts from './alerts.js';
import { say, set } from './dom.js';
import * as events from './events.js';
import { duration } from './format.js';
import { follow, merge } from './link.js';
import * as node from './node.js';
import * as series from './series.js';
import * as services from './services.js';

const main = document.querySelector('#main');
let told = null;
let due = false;

/** Draws once for all that has come until the browser draws. */
function draw() {
  if (due || !told) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    const found = alerts.find(told);
    say(document.querySelector('#name'), told.name);
    say(document.querySelector('#about'), `lbd ${told.version}, up ${duration(told.uptime)}`);
    const bad = found.filter(({ level }) => level !== 'note').length;
    const title = `${bad ? `(${bad}) ` : ''}${told.name} - lb`;
    if (document.title !== title) document.title = title;
    alerts.show(found);
    node.show(told);
    services.show(told);
    set(main, 'aria-busy', null);
  });
}

function take(view) {
  told = view;
  series.advance(told);
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
    if (told) take(merge(told, patch));
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
  const at = state === 'lost' && told ? ` since ${new Date(since).toLocaleTimeString('en-GB')}` : '';
  say(document.querySelector('#link-text'), WORDS[state] + at);
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
