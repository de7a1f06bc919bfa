'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const count = data.paths.length, near = count ? data.near.length / count : 0;
const canvas = document.getElementById('map'), tip = document.getElementById('tip');
const context = canvas.getContext('2d');
const sheets = data.sheets.map(name => { const image = new Image(); image.onload = () => draw(); image.src = name; return image; });
const COLOURS = ['#332288', '#CC6677', '#117733', '#88CCEE', '#882255', '#DDCC77', '#44AA99', '#AA4499', '#999933',
                 '#0072B2', '#D55E00', '#009E73', '#777777'];
const GREY = '#9a9a9a', LISTED = 60, FULL = 4095;
let view = {x: FULL / 2, y: FULL / 2, scale: 0.1}, chosen = -1, hovered = -1, found = null, colours = [], shown = null;
let column = null, tab = 'clusters';

// ---- The map ------------------------------------------------------------------------------------

const element = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (key === 'style') node.style.cssText = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
};
const toScreen = i => [(data.points[2 * i] - view.x) * view.scale + canvas.clientWidth / 2,
                       (view.y - data.points[2 * i + 1]) * view.scale + canvas.clientHeight / 2];

function resize() {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  draw();
}

function fit() {
  view = {x: 0, y: 0, scale: 1};
  let width = 1, height = 1;
  for (let i = 0; i < count; i++) {
    width = Math.max(width, data.points[2 * i]);
    height = Math.max(height, data.points[2 * i + 1]);
  }
  view = {x: width / 2, y: height / 2,
          scale: 0.92 * Math.min(canvas.clientWidth / width, canvas.clientHeight / height)};
}

function visible(i) {
  return (found === null || found.has(i)) && (shown === null || column.codes[i] === shown);
}

function draw() {
  const width = canvas.clientWidth, height = canvas.clientHeight, inside = [];
  context.clearRect(0, 0, width, height);
  for (let i = 0; i < count; i++) {
    const [x, y] = toScreen(i);
    if (x > -40 && y > -40 && x < width + 40 && y < height + 40) inside.push([i, x, y]);
  }
  const radius = Math.max(1.5, Math.min(5, 60 / Math.sqrt(Math.max(inside.length, 1))));
  // Thumbnails take the place of points as soon as they would cover a third of the map at most.
  const side = Math.min(64, Math.sqrt(width * height / 3 / Math.max(inside.length, 1)));
  const pictures = side >= 20;
  for (const bright of [false, true]) {
    for (const [i, x, y] of inside) {
      if (visible(i) !== bright) continue;
      context.globalAlpha = bright ? 0.9 : 0.12;
      if (pictures && bright) tile(i, x - side / 2, y - side / 2, side);
      else { context.fillStyle = colours[i]; context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius); }
    }
  }
  context.globalAlpha = 1;
  for (const [i, width] of [[hovered, 1.5], [chosen, 3]]) {
    if (i < 0) continue;
    const [x, y] = toScreen(i), around = (pictures ? side / 2 : radius) + 2;
    context.strokeStyle = '#D55E00';
    context.lineWidth = width;
    context.strokeRect(x - around, y - around, 2 * around, 2 * around);
  }
}

const sheetOf = i => Math.floor(i / (data.side * data.side));
const placeOf = i => { const k = i % (data.side * data.side); return [k % data.side, Math.floor(k / data.side)]; };

function tile(i, x, y, side) {
  const image = sheets[sheetOf(i)], [column, row] = placeOf(i);
  if (image.complete && image.naturalWidth) {
    context.drawImage(image, column * data.tile, row * data.tile, data.tile, data.tile, x, y, side, side);
  }
  context.strokeStyle = colours[i];
  context.lineWidth = 2;
  context.strokeRect(x, y, side, side);
}

function nearest(x, y) {
  let best = -1, least = 20 * 20;
  for (let i = 0; i < count; i++) {
    if (!visible(i)) continue;
    const [px, py] = toScreen(i), distance = (px - x) ** 2 + (py - y) ** 2;
    if (distance < least) { best = i; least = distance; }
  }
  return best;
}

// ---- Colours ------------------------------------------------------------------------------------

const scale = share => `hsl(${260 - 220 * share} 70% ${35 + 25 * share}%)`;

function colour(number) {
  column = data.columns[number];
  shown = null;
  const legend = document.getElementById('legend');
  if (column.names) {
    colours = column.codes.map(code => COLOURS[code % COLOURS.length]);
    legend.replaceChildren(...column.names.slice(0, LISTED).map((name, code) => element('button', {
      title: 'Show these alone', onclick: () => { shown = shown === code ? null : code; draw(); }},
      element('i', {style: `--c: ${COLOURS[code % COLOURS.length]}`}), name || '(none)')));
    if (column.names.length > LISTED) legend.append(`and ${column.names.length - LISTED} more`);
  } else {
    const numbers = column.numbers.filter(value => value !== null);
    const low = numbers.reduce((a, b) => Math.min(a, b), Infinity);
    const high = numbers.reduce((a, b) => Math.max(a, b), -Infinity);
    colours = column.numbers.map(value => value === null ? GREY : scale((value - low) / (high - low || 1)));
    legend.replaceChildren(`${low} to ${high}`, element('div', {
      class: 'scale', style: `background: linear-gradient(90deg, ${[0, .25, .5, .75, 1].map(scale)})`}));
  }
  draw();
}

// ---- The lists ----------------------------------------------------------------------------------

function thumbnail(i, large = false) {
  const [column, row] = placeOf(i), side = large ? 8 : 4;
  return element('span', {class: large ? 'tile large' : 'tile', style:
    `background-image: url(${data.sheets[sheetOf(i)]}); background-size: ${data.side * side}rem auto; ` +
    `background-position: ${-column * side}rem ${-row * side}rem`});
}

const base = path => path.slice(path.lastIndexOf('/') + 1);
const button = (i, note) => element('button', {title: data.paths[i], 'data-image': i, onclick: () => choose(i)},
                                    thumbnail(i), note);

function choose(i, move = false) {
  chosen = i;
  if (move) { view.x = data.points[2 * i]; view.y = data.points[2 * i + 1]; }
  const section = document.getElementById('chosen'), known = data.columns.map(each =>
    element('div', {}, `${each.name}: ${each.names ? each.names[each.codes[i]] || '(none)' : each.numbers[i]}`));
  const neighbours = [];
  for (let k = 0; k < near; k++) {
    neighbours.push(button(data.near[near * i + k], data.similarities[near * i + k].toFixed(3)));
  }
  section.replaceChildren(element('h2', {}, data.paths[i]),
                          element('div', {class: 'first'}, thumbnail(i, true), element('div', {}, ...known)),
                          element('h2', {}, 'Nearest'), element('div', {class: 'grid', id: 'nearest'}, ...neighbours));
  section.hidden = false;
  history.replaceState(null, '', `#${i}`);
  draw();
}

const pair = row => {
  const [i, j] = data.pairs[row];
  return element('div', {class: 'pair'}, button(i, ''), button(j, ''), element('span', {},
    `${data.paths[i]} — ${data.paths[j]} (${data.alike[row].toFixed(3)})`));
};
const file = name => element('p', {}, element('a', {href: name, download: name}, name));
const LISTS = {
  clusters: () => [file('images.csv'), element('div', {class: 'grid'}, ...data.medoids.map((i, cluster) =>
    button(i, `${cluster + 1} · ${base(data.paths[i])}`)))],
  outliers: () => [file('outliers.csv'), element('div', {class: 'grid'}, ...data.outliers.slice(0, 2 * LISTED).map(i =>
    button(i, data.outlyingness[i].toFixed(3))))],
  copies: () => [file('copies.csv'), ...data.pairs.slice(0, LISTED).map((_, row) => pair(row)),
                 ...(data.pairs.length ? [] : [element('p', {}, 'No two images are copies.')])],
  leaks: () => [file('leaks.csv'), ...data.leaks.slice(0, LISTED).map(pair),
                ...(data.leaks.length ? [] : [element('p', {}, 'No image is in two splits.')])]};
const NAMES = Object.keys(LISTS).filter(name => name !== 'leaks' ||
                                        data.columns.some(each => each.name === 'split'));

function open(name) {
  tab = name;
  document.getElementById('tabs').replaceChildren(...NAMES.map(each => element('button', {
    role: 'tab', 'aria-selected': String(each === tab), onclick: () => open(each)}, each)));
  document.getElementById('list').replaceChildren(...LISTS[name]());
}

// ---- What the user does -------------------------------------------------------------------------

let held = null;
canvas.addEventListener('pointerdown', event => {
  held = {x: event.offsetX, y: event.offsetY, view: {...view}, moved: false};
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener('pointermove', event => {
  if (held) {
    const dx = event.offsetX - held.x, dy = event.offsetY - held.y;
    held.moved = held.moved || Math.hypot(dx, dy) > 4;
    view.x = held.view.x - dx / view.scale;
    view.y = held.view.y + dy / view.scale;
  }
  hovered = held ? -1 : nearest(event.offsetX, event.offsetY);
  tip.hidden = hovered < 0;
  if (hovered >= 0) {
    tip.replaceChildren(thumbnail(hovered, true), data.paths[hovered]);
    tip.style.left = `${Math.min(event.offsetX + 14, canvas.clientWidth - 190)}px`;
    tip.style.top = `${Math.min(event.offsetY + 14, canvas.clientHeight - 180)}px`;
  }
  draw();
});
canvas.addEventListener('pointerup', event => {
  const still = held && !held.moved;
  held = null;
  if (!still) return;
  const i = nearest(event.offsetX, event.offsetY);
  if (i >= 0) choose(i);
});
canvas.addEventListener('pointerleave', () => { hovered = -1; tip.hidden = true; draw(); });
canvas.addEventListener('wheel', event => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
}, {passive: false});

function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const dx = x - canvas.clientWidth / 2, dy = canvas.clientHeight / 2 - y;
  const scale = Math.min(Math.max(view.scale * factor, 0.01), 100);
  view.x += dx / view.scale - dx / scale;
  view.y += dy / view.scale - dy / scale;
  view.scale = scale;
  draw();
}

canvas.addEventListener('keydown', event => {
  const step = 40 / view.scale, keys = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step],
                                        ArrowDown: [0, -step]};
  if (keys[event.key]) { view.x += keys[event.key][0]; view.y += keys[event.key][1]; draw(); }
  else if (event.key === '+') zoom(1.3);
  else if (event.key === '-') zoom(1 / 1.3);
  else if (event.key === '0') { fit(); draw(); }
  else return;
  event.preventDefault();
});
document.getElementById('search').addEventListener('input', event => {
  const text = event.target.value.trim().toLowerCase();
  found = null;
  if (text) {
    found = new Set();
    data.paths.forEach((path, i) => { if (path.toLowerCase().includes(text)) found.add(i); });
    document.getElementById('list').replaceChildren(element('p', {}, `${found.size} found`),
      element('div', {class: 'grid'}, ...[...found].slice(0, LISTED).map(i => button(i, base(data.paths[i])))));
  } else open(tab);
  draw();
});
document.getElementById('colour').append(...data.columns.map((each, number) =>
  element('option', {value: number}, each.name)));
document.getElementById('colour').addEventListener('change', event => colour(Number(event.target.value)));

window.addEventListener('resize', resize);
fit();
colour(0);
open('clusters');
resize();
const asked = Number.parseInt(location.hash.slice(1), 10);
if (asked >= 0 && asked < count) choose(asked);
