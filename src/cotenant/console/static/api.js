// Calls of the public HTTP API.

const token = document.querySelector('meta[name="cotenant-csrf"]')?.content;

/** Headers of every order of a signed-in browser. */
export const csrfHeaders = token ? { "X-Cotenant-CSRF": token } : {};

/** An error of the API: `message` says what happened and what to do, `param` names the wrong field. */
export class ApiError extends Error {
  constructor(status, message, code, param) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
  }
}

/** Call the API and return its JSON; `body` is sent as JSON. Throws ApiError; redirects to the login if needed. */
export async function api(method, path, body, options = {}) {
  const response = await request(method, path, body, options);
  return response.json();
}

/** Do the same as `api`, but return the response, to read it as a stream. */
export async function request(method, path, body, { signal, headers } = {}) {
  const sent = { Accept: "application/json", ...csrfHeaders, ...headers };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The daemon cannot be reached. Look whether it runs.", "unreachable");
  }
  if (response.ok) return response;
  const fault = readFault(response.status, await response.text());
  if (fault.status === 401) goToLogin();
  throw fault;
}

/** Read the error of a response. */
export function readFault(status, text) {
  try {
    const error = JSON.parse(text).error;
    return new ApiError(status, error.message, error.code, error.param);
  } catch {
    const said = new DOMParser().parseFromString(text || "", "text/html").body.textContent.trim();
    return new ApiError(status, said || `The daemon answered with status ${status}.`);
  }
}

/** Go to the login page, which returns here. */
export function goToLogin() {
  location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
}
