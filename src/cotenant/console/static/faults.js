// Errors are shown where they happen, until the next try or until they are closed.

/** Show a message in the nearest `data-faults` of an element, or at the bottom of the page. */
export function showFault(element, message) {
  const place = placeOf(element);
  clearFaults(element);
  const note = document.createElement("p");
  note.className = "fault";
  note.dataset.own = "";
  note.dataset.fault = "";
  note.setAttribute("role", "alert");
  note.append(message);
  const close = document.createElement("button");
  close.type = "button";
  close.className = "link";
  close.textContent = "Dismiss";
  close.addEventListener("click", () => note.remove());
  note.append(" ", close);
  place.append(note);
}

/** Remove the messages of an element. */
export function clearFaults(element) {
  for (const note of placeOf(element).querySelectorAll("[data-fault]")) note.remove();
}

function placeOf(element) {
  return element?.closest?.("[data-faults]") ?? document.getElementById("notices");
}
