// The search field over the table of solvers: shows the rows that have every word that is typed.
document.addEventListener("input", (event) => {
  if (!event.target.matches("input.find")) return;
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of document.querySelectorAll("article table tbody tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});
