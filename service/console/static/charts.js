"use strict";
// Charts of the pages: every element with data-chart becomes a uPlot of the numbers in it.
(() => {
  const drawn = new Map();
  const percent = (plot, values) => values.map((v) => (v === null ? "" : `${Math.round(v * 100)} %`));
  const short = (v) => (v === null || v === undefined ? "–" : String(Number(v.toPrecision(4))));
  // What is proved is rounded down, what an attack left up; 1e-6 is far less than one sample.
  const share = (plot, v) => (v === null || v === undefined ? "–" : `${(Math.floor(v * 1000 + 1e-6) / 10).toFixed(1)} %`);
  const most = (plot, v) => (v === null || v === undefined ? "–" : `${(Math.ceil(v * 1000 - 1e-6) / 10).toFixed(1)} %`);

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const names = ["ink", "soft", "rule", "certified", "attacked", "clean", "fill", "paper"];
    return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  function axes(c, label, shares) {
    const base = { stroke: c.soft, grid: { stroke: c.rule, width: 1 }, ticks: { stroke: c.rule, width: 1 }, font: "12px system-ui, sans-serif", labelFont: "13px system-ui, sans-serif" };
    return [
      { ...base, label, labelSize: 24, values: (plot, values) => values.map(short) },
      { ...base, size: 56, values: shares ? percent : (plot, values) => values.map(short) },
    ];
  }

  // Values hold up to the next position, or back to the one before.
  const after = uPlot.paths.stepped({ align: 1 });
  const before = uPlot.paths.stepped({ align: -1 });

  function accuracy(spec, c) {
    const data = [spec.x, spec.certified, spec.high, spec.low];
    const hidden = { stroke: c.fill, width: 0, points: { show: false }, paths: before };
    const between = (plot, v, place, i) => (v === null || v === undefined ? "–" : `${(plot.data[3][i] * 100).toFixed(1)} – ${(v * 100).toFixed(1)} %`);
    const series = [
      { label: "ε", value: (plot, v) => short(v) },
      { label: "certified", stroke: c.certified, width: 2.5, paths: before, points: { show: false }, value: share },
      { ...hidden, label: "95 % band", value: between },
      { ...hidden, label: "low", value: share },
    ];
    if (spec.attacked) {
      data.push(spec.attacked);
      series.push({ label: "left by attack", stroke: c.attacked, width: 2, dash: [7, 4], paths: after, points: { show: false }, value: most });
    }
    if (spec.clean !== null) {
      data.push(spec.x.map(() => spec.clean));
      series.push({ label: "clean", stroke: c.clean, width: 1.5, dash: [2, 3], points: { show: false }, value: share });
    }
    const asked = (plot) => {
      const g = plot.ctx;
      g.save();
      // A name is left out where the one before it stands: the table has them all.
      let free = -Infinity;
      for (const { epsilon, name, certified } of [...spec.asked].sort((a, b) => a.epsilon - b.epsilon)) {
        const x = plot.valToPos(epsilon, "x", true);
        g.strokeStyle = c.soft;
        g.lineWidth = devicePixelRatio;
        g.setLineDash([3 * devicePixelRatio, 4 * devicePixelRatio]);
        g.beginPath();
        g.moveTo(x, plot.bbox.top);
        g.lineTo(x, plot.bbox.top + plot.bbox.height);
        g.stroke();
        g.setLineDash([]);
        g.fillStyle = c.certified;
        g.beginPath();
        g.arc(x, plot.valToPos(certified, "y", true), 4.5 * devicePixelRatio, 0, 7);
        g.fill();
        g.fillStyle = c.soft;
        g.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
        g.textAlign = "center";
        const half = g.measureText(name).width / 2;
        if (x - half < free) continue;
        g.fillText(name, x, plot.bbox.top - 6 * devicePixelRatio);
        free = x + half + 6 * devicePixelRatio;
      }
      g.restore();
    };
    return { data, options: { padding: [22, 16, 0, 0], series, bands: [{ series: [2, 3], fill: c.fill }], axes: axes(c, spec.label, true), scales: { x: { time: false }, y: { range: [0, 1.02] } }, hooks: { draw: [asked] } } };
  }

  function radius(spec, c) {
    const series = [
      { label: "radius", value: (plot, v) => short(v) },
      { label: "samples", stroke: c.certified, fill: c.fill, width: 1, paths: uPlot.paths.bars({ size: [0.92] }), points: { show: false } },
    ];
    return { data: [spec.x, spec.counts.map((count) => count || null)], options: { series, axes: axes(c, spec.label, false), scales: { x: { time: false, range: [0, spec.x[spec.x.length - 1] + spec.width / 2] }, y: { range: (plot, low, high) => [0, Math.max(1, high * 1.08)] } } } };
  }

  function history(spec, c) {
    const series = [{ label: spec.label, value: (plot, v) => short(v) }];
    const value = spec.share ? share : (plot, v) => short(v);
    for (const line of spec.lines) {
      series.push({ label: line.name, stroke: c[line.colour], width: 2, points: { show: spec.x.length < 40, size: 6 }, value });
    }
    const y = spec.share ? { range: [0, 1.02] } : { range: (plot, low, high) => [0, high > 0 ? high * 1.08 : 1] };
    const both = axes(c, spec.label, spec.share);
    both[0].incrs = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 10000];
    return { data: [spec.x, ...spec.lines.map((line) => line.values)], options: { series, axes: both, scales: { x: { time: false, range: [0, Math.max(spec.end, 1)] }, y } } };
  }

  function comparison(spec, c) {
    const tones = [c.certified, c.attacked];
    const series = [{ label: "ε", value: (plot, v) => short(v) }];
    spec.lines.forEach((line, place) => series.push({ label: `certified ${line.name}`, stroke: tones[place], dash: place ? [7, 4] : undefined, width: 2.5, paths: before, points: { show: false }, value: share }));
    return { data: [spec.x, ...spec.lines.map((line) => line.values)], options: { series, axes: axes(c, spec.label, true), scales: { x: { time: false }, y: { range: [0, 1.02] } } } };
  }

  const kinds = { accuracy, radius, history, comparison };

  function draw(element) {
    const spec = JSON.parse(element.dataset.chart);
    const { data, options } = kinds[spec.kind](spec, colours());
    const height = element.classList.contains("small") ? 240 : 360;
    drawn.get(element)?.destroy();
    element.classList.add(spec.kind);
    const plot = new uPlot({ width: Math.max(240, element.clientWidth), height, cursor: { drag: { x: true, y: false } }, ...options }, data, element);
    drawn.set(element, plot);
    sizes.observe(element);
  }

  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const plot = drawn.get(target);
      const width = Math.max(240, target.clientWidth);
      if (plot && plot.width !== width) plot.setSize({ width, height: plot.height });
    }
  });

  function drawAll() {
    for (const element of [...drawn.keys()]) {
      if (!element.isConnected) {
        sizes.unobserve(element);
        drawn.get(element).destroy();
        drawn.delete(element);
      }
    }
    for (const element of document.querySelectorAll("[data-chart]")) {
      if (!drawn.has(element)) draw(element);
    }
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [...drawn.keys()].forEach(draw));
  document.addEventListener("htmx:afterSettle", drawAll);
  drawAll();
})();
