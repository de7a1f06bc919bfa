'use strict';

// Under the pointer a panel tells the values nearest to it, instead of the last ones.
for (const figure of document.querySelectorAll('figure.panel')) {
  const svg = figure.querySelector('.curve');
  const output = figure.querySelector('output');
  const pointer = svg.querySelector('.pointer');
  const last = output.textContent;
  const series = [...svg.querySelectorAll('g')].map(
    group => ({ name: group.dataset.name, points: JSON.parse(group.dataset.points) }));

  svg.addEventListener('pointermove', event => {
    const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    const nearest = series.map(({ name, points }) => ({
      name, point: points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best) }));
    const [at, , epoch] = nearest[0].point;
    pointer.setAttribute('d', `M${at} 8V128`);
    output.textContent = `epoch ${epoch}: ` + nearest.map(({ name, point }) => `${name} ${point[3]}`.trim()).join('; ');
  });
  svg.addEventListener('pointerleave', () => {
    pointer.setAttribute('d', '');
    output.textContent = last;
  });
}

// What is folded on the screen is printed.
addEventListener('beforeprint', () => document.querySelectorAll('details').forEach(details => { details.open = true; }));
