// The probabilities as bars with numbers: of all classes, or of the most probable ones of many.

const MOST_BARS = 10; // of classes that are more than MANY
const MANY = 12;

/** A probability in percent; only 0 and 1 would be 0 % and 100 %. */
function percent(share) {
  if (share >= 0.9995) return "> 99.9 %";
  if (share < 0.0005) return "< 0.1 %";
  return `${(100 * share).toFixed(1)} %`;
}

/** The most probable class. */
const leaderOf = (probabilities) => probabilities.indexOf(probabilities.reduce((a, b) => Math.max(a, b)));

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Bars in a list element: show(probabilities), or show(null) without a prediction. */
function makeBars(list, classes) {
  const all = classes.length <= MANY;
  const rows = Array.from({ length: all ? classes.length : MOST_BARS }, () => {
    const row = element("li", "bar");
    const [name, value] = [element("span", "name"), element("span", "value")];
    const track = element("span", "track");
    const fill = track.appendChild(element("span", "fill"));
    row.append(name, track, value);
    list.append(row);
    return { row, name, fill, value };
  });

  function show(probabilities) {
    let order = Array.from(classes.keys());
    if (!all && probabilities) order.sort((a, b) => probabilities[b] - probabilities[a]);
    const leader = probabilities ? leaderOf(probabilities) : -1;
    for (const [n, { row, name, fill, value }] of rows.entries()) {
      const label = order[n];
      name.textContent = name.title = classes[label];
      row.classList.toggle("leads", label === leader);
      fill.style.width = `${probabilities ? 100 * probabilities[label] : 0}%`;
      value.textContent = probabilities ? percent(probabilities[label]) : "";
    }
  }
  show(null);
  return { show };
}
