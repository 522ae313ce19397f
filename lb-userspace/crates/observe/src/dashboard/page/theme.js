// The colours that were chosen here before, set before anything is drawn.
'use strict';
try {
  const chosen = localStorage.getItem('lb-theme');
  if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen;
} catch {
  // A browser that keeps nothing has its own colours.
}
