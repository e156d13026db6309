// A small chat with one model, through the public API.

import { request } from "./api.js";
import { clearFaults, showFault } from "./faults.js";

const MOST_IMAGE_BYTES = 8 * 2 ** 20;

/** Set up the chat of a panel. It is not saved. */
export function startChat(panel) {
  const model = panel.dataset.chat;
  const form = panel.querySelector("[data-say]");
  const text = form.querySelector("textarea");
  const said = panel.querySelector("[data-said]");
  const hint = said.querySelector("[data-hint]");
  const stop = form.querySelector("[data-stop]");
  const send = form.querySelector("[data-send]");
  const anew = panel.querySelector("[data-new]");
  const images = form.querySelector("[data-images]");
  let messages = [];
  let pictures = [];
  let answering = null;

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!answering && text.value.trim()) say(text.value.trim());
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  stop.addEventListener("click", () => answering?.abort());
  anew.addEventListener("click", () => {
    answering?.abort();
    messages = [];
    said.replaceChildren(hint);
    anew.disabled = true;
    text.focus();
  });
  form.querySelector("[data-image]")?.addEventListener("change", (event) => {
    for (const file of event.target.files) addPicture(file);
    event.target.value = "";
  });

  async function addPicture(file) {
    clearFaults(form);
    if (file.size > MOST_IMAGE_BYTES) {
      showFault(form.querySelector("[data-faults]"), `${file.name} is larger than 8 MiB. Choose a smaller image.`);
      return;
    }
    const url = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.addEventListener("load", () => resolve(reader.result));
      reader.readAsDataURL(file);
    });
    pictures.push(url);
    const shown = picture(url, `${file.name}, to be sent`);
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "small";
    remove.textContent = "Remove";
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    const box = document.createElement("figure");
    box.append(shown, remove);
    remove.addEventListener("click", () => {
      pictures = pictures.filter((each) => each !== url);
      box.remove();
      text.focus();
    });
    images.append(box);
  }

  async function say(words) {
    const sent = pictures;
    const content = sent.length
      ? [{ type: "text", text: words }, ...sent.map((url) => ({ type: "image_url", image_url: { url } }))]
      : words;
    hint.remove();
    messages.push({ role: "user", content });
    const own = turn("You", words);
    sent.forEach((url) => own.before(picture(url, "Image that was sent")));
    pictures = [];
    images?.replaceChildren();
    text.value = "";
    const answer = turn(model, "");
    begin();
    try {
      messages.push({ role: "assistant", content: await read(answer) });
    } catch (error) {
      const stopped = error.name === "AbortError";
      if (stopped) note(answer, "stopped");
      else showFault(form.querySelector("[data-faults]"), error.message);
      if (answer.textContent) messages.push({ role: "assistant", content: answer.textContent });
      else {
        messages.pop();
        if (!stopped) {
          // It failed: put the text back into the field, to send it again.
          own.parentElement.remove();
          answer.parentElement.remove();
          text.value = words;
        }
      }
    }
    end();
  }

  async function read(answer) {
    const most = Number(form.querySelector("[data-max]").value) || 512;
    const body = { model, messages, stream: true, max_tokens: most, stream_options: { include_usage: true } };
    const began = performance.now();
    const response = await request("POST", "/v1/chat/completions", body, {
      signal: answering.signal,
      headers: { "X-Cotenant-Wait-Comments": "1" },
    });
    let first = null;
    let usage = null;
    for await (const event of events(response)) {
      if (event.comment !== undefined) {
        if (!first) wait(answer, event.comment);
        continue;
      }
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices?.[0]?.delta;
      const piece = delta?.content ?? delta?.reasoning_content;
      if (piece) {
        first ??= performance.now();
        wait(answer, "");
        write(answer, piece);
      }
      usage = event.usage ?? usage;
    }
    const seconds = (performance.now() - (first ?? began)) / 1000;
    const tokens = usage?.completion_tokens;
    const parts = [`first token after ${(((first ?? performance.now()) - began) / 1000).toFixed(2)} s`];
    if (tokens) parts.push(`${tokens} tokens`, `${(tokens / Math.max(seconds, 0.001)).toFixed(1)} tokens/s`);
    note(answer, parts.join(" · "));
    return answer.textContent;
  }

  function begin() {
    clearFaults(form.querySelector("[data-faults]"));
    answering = new AbortController();
    stop.hidden = false;
    send.hidden = true;
    anew.disabled = true;
    said.setAttribute("aria-busy", "true");
  }

  function end() {
    const focused = document.activeElement === stop;
    answering = null;
    stop.hidden = true;
    send.hidden = false;
    anew.disabled = messages.length === 0;
    said.removeAttribute("aria-busy");
    if (focused) text.focus();
  }

  function turn(who, words) {
    const box = document.createElement("div");
    box.className = who === "You" ? "turn own" : "turn";
    const name = document.createElement("p");
    name.className = "who";
    name.textContent = who;
    const body = document.createElement("div");
    body.className = "words";
    body.textContent = words;
    box.append(name, body);
    said.append(box);
    said.scrollTop = said.scrollHeight;
    return body;
  }

  function write(answer, piece) {
    const atEnd = said.scrollHeight - said.scrollTop - said.clientHeight < 40;
    answer.append(piece);
    if (atEnd) said.scrollTop = said.scrollHeight;
  }

  function note(answer, words) {
    wait(answer, "");
    const line = document.createElement("p");
    line.className = "sub";
    line.textContent = words;
    answer.after(line);
    said.scrollTop = said.scrollHeight;
  }

  function wait(answer, words) {
    let line = answer.parentElement.querySelector("[data-wait]");
    if (!words) {
      line?.remove();
      return;
    }
    if (!line) {
      line = document.createElement("p");
      line.className = "sub";
      line.dataset.wait = "";
      answer.before(line);
    }
    line.textContent = words;
  }
}

function picture(url, name) {
  const image = document.createElement("img");
  image.src = url;
  image.alt = name;
  return image;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    const lines = (rest + piece.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith(":")) yield { comment: line.slice(1).trim() };
      else if (line.startsWith("data: ") && !line.startsWith("data: [DONE]")) yield JSON.parse(line.slice(6));
    }
  }
}
