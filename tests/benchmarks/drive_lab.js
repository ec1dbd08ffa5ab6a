// What drive_lab.py asks a page of JupyterLab, in the names that a person would use.
const all = selector => [...document.querySelectorAll(`.jp-Notebook ${selector}`)];
const prompts = () => all(".jp-CodeCell .jp-InputPrompt").map(prompt => prompt.textContent);
const ran = prompt => /[0-9]/.test(prompt);

const begun = () => ran(prompts()[0]);

// The kernel rests and no cell waits: all ran, or one failed and the others were called off.
function ended() {
  const kernel = document.querySelector(".jp-Notebook-ExecutionIndicator").dataset.status;
  return begun() && kernel == "idle" && !prompts().some(prompt => prompt.includes("*"));
}

// Code cells that ran, those with an error, pictures shown, those without alt text. On the page an
// error looks like any text of stderr, so errors are counted in the notebook as it was saved.
async function counts(name) {
  const saved = await (await fetch(`/api/contents/notebooks/${name}.ipynb`)).json();
  const failed = saved.content.cells.filter(
    cell => (cell.outputs ?? []).some(output => output.output_type == "error"));
  const pictures = all("img"), shown = pictures.filter(picture => picture.naturalWidth > 0);
  const silent = shown.filter(picture => !picture.alt.trim());
  return [
    `${prompts().filter(ran).length} of ${prompts().length}`, failed.length,
    `${shown.length} of ${pictures.length}`, silent.length,
  ];
}

// Of all texts in HTML outputs the one with the least contrast to its ground, by WCAG 2.2's
// formula. A canvas of one pixel mixes transparent colours as the screen does.
function lowestContrast() {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const paint = colour => { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); };
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = () => {
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map(c => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = element => {
    const around = [];
    for (let e = element; e; e = e.parentElement) around.unshift(getComputedStyle(e));
    paint("white");
    for (const style of around) paint(style.backgroundColor);
    const ground = luminance();
    paint(around.at(-1).color);
    const [low, high] = [ground, luminance()].sort((a, b) => a - b);
    return {value: (high + 0.05) / (low + 0.05), text: element.textContent.trim().slice(0, 40)};
  };
  const says = node => node.nodeType == Node.TEXT_NODE && node.textContent.trim();
  return all(".jp-OutputArea-output.jp-RenderedHTMLCommon *")
    .filter(element => [...element.childNodes].some(says))
    .map(contrast)
    .reduce((a, b) => b.value < a.value ? b : a, {value: Infinity, text: ""});
}
