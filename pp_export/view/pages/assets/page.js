// The page itself: a link to each section, and the sections.
const all = JSON.parse(document.getElementById("data").textContent).sections;
const links = element("nav", {});
document.querySelector("main").append(links);
all.forEach((section, at) => {
  const made = element("section", { id: `section-${at}` });
  if (section.title) {
    links.append(element("a", { href: `#section-${at}` }, section.title));
    made.append(element("h2", {}, section.title));
  }
  if (section.note) made.append(element("p", {}, section.note));
  made.append(kinds[section.kind](section));
  document.querySelector("main").append(made);
});
document.body.append(hint);
