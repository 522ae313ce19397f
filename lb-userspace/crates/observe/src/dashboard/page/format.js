// Numbers and times, for people.

const whole = new Intl.NumberFormat('en-US');

/** `1,234` below a million, `1.23 M` above. */
export function count(number) {
  if (number < 1e6) return whole.format(Math.round(number));
  return scaled(number, ['', ' k', ' M', ' G', ' T', ' P', ' E']);
}

/** `87`, `1.23 k`: short, for rates. */
export function short(number) {
  return number < 1000 ? String(Math.round(number)) : scaled(number, ['', ' k', ' M', ' G', ' T', ' P', ' E']);
}

/** Bytes, by powers of 1,000: `1.23 MB`. */
export function bytes(number) {
  if (number < 1000) return `${Math.round(number)} B`;
  return scaled(number, [' B', ' kB', ' MB', ' GB', ' TB', ' PB', ' EB']);
}

function scaled(number, units) {
  let unit = 0;
  let value = number;
  // What would be written as 1000 of a unit is 1 of the next one.
  while (value >= 999.5 && unit + 1 < units.length) {
    value /= 1000;
    unit += 1;
  }
  const digits = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return value.toFixed(digits) + units[unit];
}

/** `33.3 %`. */
export function percent(part, all) {
  if (!(all > 0)) return '-';
  return part === all ? '100 %' : `${((100 * part) / all).toFixed(1)} %`;
}

/** Seconds as `3 d 4 h`, `5 min`, `12 s`. */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return s < 600 && s % 60 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 60)} min`;
  if (s < 86400) return pair(s, 3600, 'h', 60, 'min');
  return pair(s, 86400, 'd', 3600, 'h');
}

function pair(s, large, name, small, least) {
  const rest = Math.floor((s % large) / small);
  return `${Math.floor(s / large)} ${name}${rest ? ` ${rest} ${least}` : ''}`;
}

/** Microseconds: `0.4 ms`, `1.2 s`. */
export function micros(number) {
  if (number < 1e6) return `${(number / 1e3).toFixed(number < 1e4 ? 1 : 0)} ms`;
  return `${(number / 1e6).toFixed(1)} s`;
}

/** The time of day, with the date if it is another day. */
export function clock(millis, now) {
  const at = new Date(millis);
  const time = at.toLocaleTimeString('en-GB');
  return at.toDateString() === new Date(now).toDateString() ? time : `${date(at)} ${time}`;
}

function date(at) {
  const two = (number) => String(number).padStart(2, '0');
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
}

/** `one backend`, `3 backends`. */
export function several(number, one, many = `${one}s`) {
  return `${whole.format(number)} ${number === 1 ? one : many}`;
}

/** `no_backend` as words. */
export function words(name) {
  return name.replaceAll('_', ' ');
}

/** A backend's address, and its name if it has one. */
export function labelled(address, backend) {
  return backend.name ? `${address} (${backend.name})` : address;
}

/** `10.0.0.100:80`, `[fd00::100]:80`. */
export function endpoint(address, port) {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}
