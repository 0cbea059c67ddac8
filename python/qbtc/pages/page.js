// Draw every figure of the page in its colours; again when those change (dark mode, printing).
"use strict";
const LIGHT = { text: "#3a4048", grid: "#e9ebee", axis: "#b9bec6", panel: "#ffffff" };
const DARK = { text: "#c3c9d2", grid: "#2a3038", axis: "#4c545f", panel: "#171b21" };
const dark = matchMedia("(prefers-color-scheme: dark)");

function coloured(layout, colours) {
  const result = structuredClone(layout);
  result.font = { ...result.font, color: colours.text };
  result.hoverlabel = {
    ...result.hoverlabel,
    bgcolor: colours.panel,
    bordercolor: colours.axis,
    font: { color: colours.text },
  };
  for (const name of Object.keys(result).filter((key) => /^[xy]axis\d*$/.test(key))) {
    result[name] = {
      ...result[name],
      gridcolor: colours.grid,
      zerolinecolor: colours.axis,
      linecolor: colours.axis,
      tickcolor: colours.axis,
      showgrid: name.startsWith("y"),
      zeroline: name.startsWith("y"),
      showline: name.startsWith("x"),
      ticks: name.startsWith("x") ? "outside" : "",
    };
  }
  return result;
}

function draw(colours) {
  for (const figure of document.querySelectorAll("figure.chart")) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    Plotly.react(figure.querySelector("div"), spec.data, coloured(spec.layout, colours), {
      responsive: true,
      displayModeBar: false, // drag to zoom, double click to go back
    });
  }
}

const drawForScreen = () => draw(dark.matches ? DARK : LIGHT);
drawForScreen();
dark.addEventListener("change", drawForScreen);
addEventListener("beforeprint", () => draw(LIGHT));
addEventListener("afterprint", drawForScreen);
