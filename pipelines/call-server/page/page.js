// The page of minicpmo-call-server: a call over WebRTC, or over a WebSocket where that does not connect, that speaks OpenAI's
// Realtime events.

import {SocketLine} from "./socket.js";

const GATHERING_MS = 2000, CONNECTING_MS = 8000;
const STATES = {
  idle: "Ready", connecting: "Connecting…", listening: "Listening", hearing: "Hearing you", thinking: "Thinking…",
  speaking: "Speaking", ended: "Call ended", error: "Call failed",
};
const element = (id) => document.getElementById(id);
const page = Object.fromEntries(["state", "notice", "token", "token-line", "call", "talk", "input-level", "output-level", "captions",
  "message", "text", "send", "voice", "voice-line", "instructions", "push-to-talk", "sound"].map((id) => [id, element(id)]));

// Something the user can act on; its text is shown as it is.
class Trouble extends Error {}

// ---- The call: from the microphone to the channel for events. It ends itself when it fails.

class Call {
  constructor(config, token, audio, {onopen, onevent, onsound, onnotice, onend}) {
    Object.assign(this, {config, token, audio, onopen, onevent, onsound, onnotice, onend, closed: false, muted: false});
  }

  async start() {
    try {
      const stream = await this.microphone();
      if (this.closed) return stream.getTracks().forEach((t) => t.stop());
      this.stream = stream;
      if (this.config.transport == "websocket") this.connect_socket();
      else await this.connect();
    } catch (error) {
      this.end("error", error instanceof Trouble ? error.message : `The call could not be made: ${error.message}`);
    }
  }

  // A stream that is silent if there is no microphone: typing still works.
  async microphone() {
    try {
      if (!navigator.mediaDevices) throw new DOMException("", "SecurityError");
      return await navigator.mediaDevices.getUserMedia(
        {audio: {echoCancellation: true, noiseSuppression: true, autoGainControl: true}});
    } catch (error) {
      const advice = {
        NotAllowedError: "The microphone was refused. Allow it for this page (the icon beside the address), then call again.",
        NotFoundError: "No microphone was found. Connect one, then call again.",
        NotReadableError: "The microphone does not work. Perhaps another program uses it; close that, then call again.",
        SecurityError: "Browsers offer the microphone to pages over https or from localhost only. Open this page so.",
      };
      this.onnotice(`${advice[error.name] ?? `The microphone does not work: ${error.message}.`} Meanwhile you can type below.`);
      this.muted = true;
      return this.audio.createMediaStreamDestination().stream;
    }
  }

  async connect() {
    const pc = this.pc = new RTCPeerConnection({iceServers: this.config.iceServers});
    pc.ontrack = ({track, streams}) => this.onsound(streams[0] ?? new MediaStream([track]));
    pc.onconnectionstatechange = () => this.connection_changed();
    for (const track of this.stream.getAudioTracks()) pc.addTrack(track, this.stream);
    this.channel = pc.createDataChannel("oai-events");
    this.channel.onopen = () => { clearTimeout(this.timer); this.onopen(); };
    this.channel.onmessage = ({data}) => this.closed || this.onevent(JSON.parse(data));
    this.channel.onclose = () => this.end("ended", "The server ended the call.");
    await pc.setLocalDescription();
    await gathered(pc);
    if (this.closed) return;
    const answer = await this.post(pc.localDescription.sdp);
    if (this.closed) return this.hang_up();  // ended while the server answered
    await pc.setRemoteDescription({type: "answer", sdp: answer});
    this.timer = setTimeout(() => this.fall_back(), CONNECTING_MS);
  }

  // The server answers, but no connection comes about: a firewall keeps UDP away, and there is no TURN server.
  async fall_back() {
    clearTimeout(this.timer);
    this.channel.onclose = null;
    this.pc.close();
    await this.hang_up();  // makes room
    this.pc = this.channel = this.location = null;
    if (!this.closed) this.connect_socket();
  }

  connect_socket() {
    let was_open = false;
    const socket = this.socket = new SocketLine(this.audio, {
      onopen: async () => {
        was_open = true;
        this.onsound(socket.stream);
        if (!this.muted) await socket.listen(this.stream);
        if (!this.closed) this.onopen();
      },
      onevent: (event) => this.closed || this.onevent(event),
      onclose: (code, reason) => (was_open ? this.socket_closed(code, reason) : this.socket_refused()),
    });
    socket.start(new URL("/v1/realtime", location.href.replace(/^http/, "ws")), this.token);
  }

  socket_closed(code, reason) {
    const told = {idle: "The server ended the call: it heard nothing for too long.", slow: "The connection is too slow for a call.",
      "too-long": "The server ended the call: it has lasted as long as calls may.", failed: "The call failed on the server."};
    if (code == 1006) this.end("error", LOST);
    else this.end("ended", told[reason] ?? "The server ended the call.");
  }

  // Browsers do not say why: the same request as no WebSocket does.
  async socket_refused() {
    try {
      const response = await fetch("/v1/realtime", {headers: this.authorization()});
      throw response.status == 426 ? new Trouble("No WebSocket comes about: something on the way keeps it from the server.")
        : refusal(response, await response.text());
    } catch (error) {
      this.end("error", error instanceof Trouble ? error.message : UNREACHABLE);
    }
  }

  async post(sdp) {
    let response;
    try {
      response = await fetch("/v1/realtime/calls",
        {method: "POST", headers: {"Content-Type": "application/sdp", ...this.authorization()}, body: sdp});
    } catch {
      throw new Trouble(UNREACHABLE);
    }
    const body = await response.text();
    if (response.ok) {
      const location = response.headers.get("Location");
      this.location = location && new URL(location, response.url);
      return body;
    }
    throw refusal(response, body);
  }

  authorization() {
    return this.token ? {Authorization: `Bearer ${this.token}`} : {};
  }

  connection_changed() {
    const state = this.pc.connectionState;
    if (state == "failed" && this.channel.readyState == "connecting") return this.fall_back();
    if (state == "failed") this.end("error", LOST);
    if (state == "disconnected") this.onnotice("The connection is interrupted…");
    if (state == "connected" && !this.muted) this.onnotice("");
  }

  send(event) {
    if (this.socket) this.socket.send(event);
    else if (this.channel?.readyState == "open") this.channel.send(JSON.stringify(event));
  }

  microphone_on(on) {
    this.stream?.getAudioTracks().forEach((track) => { track.enabled = on; });
    if (this.socket) this.socket.open = on;
  }

  async stats() {
    if (this.socket) return this.socket.stats();
    const all = [...(await this.pc?.getStats() ?? new Map()).values()];
    return all.find((s) => s.type == "inbound-rtp" && s.kind == "audio") ?? null;
  }

  // keepalive: also while the page goes away.
  async hang_up() {
    if (this.location) await fetch(this.location, {method: "DELETE", headers: this.authorization(), keepalive: true}).catch(() => {});
  }

  end(state, notice) {
    if (this.closed) return;
    this.closed = true;
    clearTimeout(this.timer);
    this.hang_up();
    this.stream?.getTracks().forEach((track) => track.stop());
    this.pc?.close();
    this.socket?.close();
    this.onend(state, notice);
  }
}

const LOST = "The connection was lost. Check the network, then call again.";
const UNREACHABLE = "The server cannot be reached. Check the network, then call again.";

function refusal(response, body) {
  const wait = response.headers.get("Retry-After");
  const again = wait ? `Call again in ${wait} seconds.` : "Call again later.";
  if (response.status == 401) return new Trouble("The token is missing or wrong. Type it above, then call again.");
  if (response.status == 503) return new Trouble(`The server takes no more calls at the moment. ${again}`);
  if (response.status == 429) return new Trouble(`Too many calls from here. ${again}`);
  return new Trouble(`The server refused the call: ${error_message(body) ?? response.statusText}`);
}

function error_message(body) {
  try {
    return JSON.parse(body).error.message;
  } catch {
    return null;
  }
}

// All candidates go into the offer: the server knows no trickling.
function gathered(pc) {
  return new Promise((done) => {
    setTimeout(done, GATHERING_MS);
    pc.onicegatheringstatechange = () => pc.iceGatheringState == "complete" && done();
    if (pc.iceGatheringState == "complete") done();
  });
}

// ---- Captions

const captions = [];  // in the order of the page: {who, text, interrupted, unheard, note, latency, trace, item}

function add_caption(who, text, fields = {}) {
  const item = document.createElement("li");
  item.className = who;
  const caption = {who, text, interrupted: false, unheard: "", note: "", latency: null, trace: null, item, ...fields};
  captions.push(caption);
  page.captions.append(item);
  draw_caption(caption);
  return caption;
}

function span(name, text, tag = "span") {
  const part = document.createElement(tag);
  part.className = name;
  part.textContent = text;
  return part;
}

function draw_caption({who, text, interrupted, unheard, note, latency, trace, item}) {
  const at_end = page.captions.scrollHeight - page.captions.scrollTop - page.captions.clientHeight < 40;
  item.classList.toggle("interrupted", interrupted);
  item.replaceChildren(span("who", who == "user" ? "You" : "Answer"), span("text", text));
  if (note) item.append(" ", span("note", note));
  if (unheard) item.append(" ", span("unheard", unheard, "s"));
  if (latency?.words !== undefined || latency?.sound !== undefined) item.append(waterfall(latency));
  if (trace) item.append(traced(trace));
  if (at_end) page.captions.scrollTop = page.captions.scrollHeight;
}

function note_caption(caption, note) {
  caption.note = note;
  draw_caption(caption);
}

// From the end of the user's turn to the first words, and on to the sound.
function waterfall({words, sound}) {
  const parts = [["words", words ?? 0]];
  if (sound !== undefined) parts.push(["sound", sound - (words ?? 0)]);
  const told = [["words", words], ["sound", sound]].filter(([, ms]) => ms !== undefined);
  return timeline(parts, told.map(([name, ms]) => `${name} after ${Math.round(ms)} ms`).join(", "));
}

// Parts of a time, [class, ms], one after the other, and what they are in words.
function timeline(parts, text) {
  const line = span("latency", "", "div"), bar = span("", "");
  const whole = Math.max(1000, parts.reduce((sum, [, ms]) => sum + ms, 0));
  bar.setAttribute("aria-hidden", "true");
  for (const [name, ms] of parts) {
    const piece = span(name, "", "i");
    piece.style.width = `${100 * Math.max(0, ms) / whole}%`;
    bar.append(piece);
  }
  line.append(bar, text);
  return line;
}

// What the server's tracer tells: from the user's last voiced sample to the sound that leaves it.
// Its waits are the user's to shorten: the longest parts come with the setting that owns them.
const STAGES = new Set(["encode", "prefill", "decode", "decode-more", "speech", "vocoder"]);
function traced({total_ms, parts}) {
  const of = new Map();
  for (const {part, ms, element, setting} of parts) {
    const known = of.get(part) ?? {part, ms: 0, owners: []};
    known.ms += ms;
    if (setting) known.owners.push(`${element} ${setting}`);
    of.set(part, known);
  }
  const all = [...of.values()];
  const text = all.filter(({ms}) => ms >= 0.5).map(({part, ms}) => `${part} ${Math.round(ms)}`).join(", ");
  const line = timeline(all.map(({part, ms}) => [STAGES.has(part) ? "sound" : "words", ms]),
                        `on the server ${Math.round(total_ms)} ms: ${text}`);
  line.classList.add("traced");
  line.title = all.filter(({owners}) => owners.length).map(({part, owners}) => `${part}: ${owners.join("; ")}`).join("\n");
  return line;
}

// ---- The conversation: Realtime events to captions and state

let config = {iceServers: [], token_required: false, transport: "webrtc", voices: []};
let call = null, audio = null, remote = null;
let talk = null;  // what of the conversation is under way, see start()
const meters = {input: null, output: null};

function set_state(state, label = STATES[state]) {
  if (page.state.dataset.state == state && page.state.textContent == label) return;
  page.state.dataset.state = state;
  page.state.textContent = label;
}

function update_state() {
  if (talk.hearing) set_state("hearing");
  else if (talk.sounding) set_state("speaking");
  else if (talk.thinking) set_state("thinking");
  else set_state("listening", call.muted ? "Ready for your message" : page["push-to-talk"].checked ? "Ready: hold to talk" : undefined);
}

function notice(text) {
  page.notice.hidden = !text;
  page.notice.textContent = text ?? "";
}

function turn_over() {
  talk.hearing = false;
  talk.thinking = true;
  talk.turn_end = performance.now();
}

function answer_of(event) {
  const id = event.response_id ?? event.response?.id;
  return talk.answers.get(id) ?? talk.answers_by_item.get(event.item_id);
}

function words(event) {
  const answer = answer_of(event);
  if (!answer) return;
  answer.caption ??= add_caption("model", "");
  talk.answers_by_item.set(event.item_id, answer);
  if (answer.turn_end !== null) answer.latency.words ??= performance.now() - answer.turn_end;
  answer.caption.latency = answer.latency;
  answer.caption.text += event.delta;
  draw_caption(answer.caption);
}

function interrupted(event) {
  const caption = answer_of(event)?.caption;
  if (!caption) return;
  caption.interrupted = true;
  note_caption(caption, "— interrupted");
}

const EVENTS = {
  "session.updated"({session}) {
    talk.session = session;
  },
  "input_audio_buffer.speech_started"({item_id, audio_start_ms}) {
    talk.hearing = true;
    talk.turn = {from: audio_start_ms, caption: add_caption("user", "speaks…"), committed: false};
    talk.turns.set(item_id, talk.turn);
  },
  "input_audio_buffer.speech_stopped"({item_id, audio_end_ms}) {
    turn_over();
    const turn = talk.turns.get(item_id);
    if (!turn) return;
    turn.caption.text = `spoke ${((audio_end_ms - turn.from) / 1000).toFixed(1)} s`;
    draw_caption(turn.caption);
  },
  "input_audio_buffer.committed"({item_id}) {
    const turn = talk.turns.get(item_id);
    if (turn) turn.committed = true;
  },
  // A cough; or what push-to-talk begins with.
  "input_audio_buffer.cleared"() {
    talk.hearing = talk.held;
    talk.thinking = talk.responding;
    if (talk.turn && !talk.turn.committed) note_caption(talk.turn.caption, "— no speech");
  },
  "response.created"(event) {
    talk.thinking = talk.responding = true;
    talk.latest = event.response.id;
    talk.answers.set(event.response.id, {caption: null, latency: {}, turn_end: talk.turn_end});
    talk.turn_end = null;
  },
  "response.output_audio_transcript.delta": words,
  "output_audio_buffer.started"(event) {
    talk.sounding = true;
    talk.thinking = false;
    const answer = answer_of(event);
    if (!answer || answer.turn_end === null) return;
    answer.latency.sound ??= performance.now() - answer.turn_end;
    if (answer.caption) draw_caption(answer.caption);
  },
  "output_audio_buffer.stopped"() {
    talk.sounding = false;
  },
  "output_audio_buffer.cleared"(event) {
    talk.sounding = false;
    interrupted(event);
  },
  "conversation.item.truncated"(event) {
    interrupted(event);
    call.send({type: "conversation.item.retrieve", item_id: event.item_id});
  },
  // What of an interrupted answer was heard.
  "conversation.item.retrieved"({item}) {
    const caption = talk.answers_by_item.get(item.id)?.caption, heard = item.content?.[0]?.transcript;
    if (!caption?.interrupted || heard === undefined || !caption.text.startsWith(heard)) return;
    caption.unheard = caption.text.slice(heard.length).trim();
    caption.text = heard.trim();
    draw_caption(caption);
  },
  "response.done"(event) {
    const {id, status, status_details} = event.response;
    if (id == talk.latest) talk.thinking = talk.responding = false;
    if (status == "cancelled") interrupted(event);
    if (status == "failed") notice(`The answer failed: ${status_details?.error?.message ?? status_details?.error?.code ?? "no reason given"}`);
  },
  // Only of a server that runs with the tracer minicpmoturns.
  "minicpmo.turn_trace"(event) {
    const caption = answer_of(event)?.caption;
    if (!caption || !event.trace.complete) return;
    caption.trace = event.trace;
    draw_caption(caption);
  },
  "error"({error}) {
    talk.thinking = talk.responding;
    notice(error.message);
  },
};

function session_update() {
  const voice = page.voice.value, instructions = page.instructions.value.trim();
  const turn_detection = page["push-to-talk"].checked ? null : {type: "server_vad"};
  call?.send({type: "session.update", session: {
    type: "realtime", ...(instructions && {instructions}),
    audio: {input: {turn_detection}, ...(voice && {output: {voice}})}}});
}

function type_message(text) {
  add_caption("user", text);
  call.send({type: "conversation.item.create", item: {type: "message", role: "user", content: [{type: "input_text", text}]}});
  turn_over();
  call.send({type: "response.create"});
  update_state();
}

// ---- Push-to-talk

function hold() {
  if (!talk || talk.held || call.muted || !page["push-to-talk"].checked) return;
  talk.held = talk.hearing = true;
  page.talk.dataset.held = "";
  if (talk.responding) call.send({type: "response.cancel"});
  if (talk.sounding) call.send({type: "output_audio_buffer.clear"});
  call.send({type: "input_audio_buffer.clear"});
  talk.pressed = performance.now();
  call.microphone_on(true);
  update_state();
}

function release() {
  if (!talk?.held) return;
  talk.held = false;
  delete page.talk.dataset.held;
  call.microphone_on(false);
  call.send({type: "input_audio_buffer.commit"});
  call.send({type: "response.create"});
  add_caption("user", `spoke ${((performance.now() - talk.pressed) / 1000).toFixed(1)} s`);
  turn_over();
  update_state();
}

function push_to_talk_changed() {
  const on = page["push-to-talk"].checked;
  if (!on) release();
  page.talk.hidden = !on;
  call?.microphone_on(!on);
  session_update();
  if (talk) update_state();
}

// ---- Levels

function meter(stream) {
  const analyser = audio.createAnalyser();
  analyser.fftSize = 1024;
  const source = audio.createMediaStreamSource(stream);
  source.connect(analyser);
  return {analyser, source, samples: new Float32Array(analyser.fftSize)};
}

function peak(of) {
  if (!of) return 0;
  of.analyser.getFloatTimeDomainData(of.samples);
  return of.samples.reduce((loudest, x) => Math.max(loudest, Math.abs(x)), 0);
}

const levels = () => ({input: peak(meters.input), output: peak(meters.output)});

function draw_levels() {
  if (!call) return;
  const now = levels();
  // Loudness as the ear counts it: 60 dB over the whole scale.
  for (const side of ["input", "output"]) {
    page[`${side}-level`].value = Math.max(0, 1 + 20 * Math.log10(Math.max(now[side], 1e-6)) / 60);
  }
  requestAnimationFrame(draw_levels);
}

// ---- The buttons

function typing(possible) {
  page.text.disabled = page.send.disabled = !possible;
}

function start() {
  notice("");
  if (config.token_required) sessionStorage.setItem("token", page.token.value);
  audio ??= new AudioContext();
  audio.resume();
  talk = {hearing: false, thinking: false, responding: false, sounding: false, held: false, latest: null, turn_end: null,
          session: null, turn: null, turns: new Map(), answers: new Map(), answers_by_item: new Map()};
  call = new Call(config, page.token.value, audio, {
    onopen() {
      typing(true);
      meters.input = meter(call.stream);
      push_to_talk_changed();
    },
    onevent(event) {
      EVENTS[event.type]?.(event);
      update_state();
    },
    onsound(stream) {
      remote = page.sound.srcObject = stream;
      page.sound.play().catch(() => {});  // fails only when the call ends first
      meters.output?.source.disconnect();
      meters.output = meter(stream);
    },
    onnotice: notice,
    onend: ended,
  });
  set_state("connecting");
  page.call.textContent = "Hang up";
  page.call.dataset.busy = "";
  draw_levels();
  call.start();
}

function ended(state, text) {
  for (const side of ["input", "output"]) {
    meters[side]?.source.disconnect();
    meters[side] = null;
    page[`${side}-level`].value = 0;
  }
  for (const {caption} of talk.turns.values()) {
    if (caption.text == "speaks…") note_caption(caption, "— not answered");
  }
  call = talk = remote = page.sound.srcObject = null;
  typing(false);
  delete page.call.dataset.busy;
  delete page.talk.dataset.held;
  page.call.textContent = "Call again";
  set_state(state);
  notice(text);
  if (state == "error" && config.token_required && /token/.test(text)) page.token.focus();
}

page.call.onclick = () => (call ? call.end("ended", "") : start());
page.message.onsubmit = (submitted) => {
  submitted.preventDefault();
  const text = page.text.value.trim();
  if (!text || !talk) return;
  type_message(text);
  page.text.value = "";
};
page.voice.onchange = page.instructions.onchange = session_update;
page["push-to-talk"].onchange = push_to_talk_changed;
page.talk.onpointerdown = (press) => { page.talk.setPointerCapture(press.pointerId); hold(); };
page.talk.onpointerup = page.talk.onpointercancel = release;
// The space key keeps its meaning where it types or presses something else.
const is_talk_key = (key) => key.code == "Space" && !page.talk.hidden &&
  (key.target == page.talk || !key.target.closest("input, textarea, select, button, summary"));
document.onkeydown = (key) => { if (is_talk_key(key)) { key.preventDefault(); if (!key.repeat) hold(); } };
document.onkeyup = (key) => { if (key.code == "Space" && talk?.held) { key.preventDefault(); release(); } };
window.onblur = release;
window.onpagehide = () => call?.end("ended", "");

async function configure() {
  const response = await fetch("/config.json");
  config = {...config, ...await response.json()};
  config.transport = new URLSearchParams(location.search).get("transport") ?? config.transport;
  page["token-line"].hidden = !config.token_required;
  page.token.value = (config.token_required && sessionStorage.getItem("token")) || "";
  page.voice.replaceChildren(...config.voices.map((name) => new Option(name)));
  page["voice-line"].hidden = config.voices.length == 0;
}
configure().catch((error) => notice(`The server's configuration could not be read: ${error.message}. Reload the page.`));

// For tests and for the curious in the browser's console.
window.callState = {
  get state() { return page.state.dataset.state; },
  get captions() { return captions.map(({item, ...rest}) => rest); },
  get remote() { return remote; },
  get session() { return talk?.session ?? null; },
  levels,
  get transport() { return call?.socket ? "websocket" : call ? "webrtc" : null; },
  async stats() { return await call?.stats() ?? null; },
};
