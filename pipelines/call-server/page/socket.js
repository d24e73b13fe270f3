// A call over a WebSocket, for networks that let no UDP through: sound and events are messages of OpenAI's Realtime API.

const RATE = 24000;
const DELAY = 0.1;  // seconds that sound waits for what the network delays
const CUTOFF = 10500, BUTTERWORTH = [0.5412, 1.3066];  // Hz; Q of the two halves of a filter of 4th order

export class SocketLine {
  constructor(audio, {onopen, onevent, onclose}) {
    Object.assign(this, {audio, onopen, onevent, onclose, nodes: [], playing: new Set(), end: 0, late: 0, received: 0, open: false});
    this.speaker = audio.createMediaStreamDestination();
    this.stream = this.speaker.stream;  // what the server says
    // Without a source Chromium's stream stands still, and who records it loses the pauses.
    const pause = new ConstantSourceNode(audio, {offset: 0});
    pause.connect(this.speaker);
    pause.start();
    this.nodes.push(pause);
  }

  // Browsers send no headers with a WebSocket: the token goes where OpenAI's clients put it.
  start(url, token) {
    this.socket = new WebSocket(url, token ? ["realtime", `openai-insecure-api-key.${token}`] : ["realtime"]);
    this.socket.onopen = () => this.onopen();
    this.socket.onclose = ({code, reason}) => this.onclose(code, reason);
    this.socket.onmessage = ({data}) => {
      const event = JSON.parse(data);
      if (event.type == "response.output_audio.delta") this.play(event.delta);
      else if (event.type == "output_audio_buffer.cleared") this.silence();
      this.onevent(event);
    };
  }

  // Sends a microphone's sound while `open` is true.
  async listen(stream) {
    await this.audio.audioWorklet.addModule("capture.js");
    const capture = new AudioWorkletNode(this.audio, "capture", {numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit"});
    capture.port.onmessage = ({data}) => {
      if (this.open) this.send({type: "input_audio_buffer.append", audio: btoa(String.fromCharCode(...new Uint8Array(data)))});
    };
    const filters = BUTTERWORTH.map((Q) => new BiquadFilterNode(this.audio, {type: "lowpass", frequency: CUTOFF, Q: 20 * Math.log10(Q)}));
    const chain = [this.audio.createMediaStreamSource(stream), ...filters, capture];
    chain.reduce((from, to) => from.connect(to));
    this.nodes.push(...chain);
  }

  send(event) {
    if (this.socket.readyState == WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  play(base64) {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const samples = Float32Array.from(new Int16Array(bytes.buffer), (x) => x / 32768);
    if (!samples.length) return;
    const buffer = this.audio.createBuffer(1, samples.length, RATE), source = this.audio.createBufferSource();
    buffer.copyToChannel(samples, 0);
    source.buffer = buffer;
    source.connect(this.speaker);
    const now = this.audio.currentTime;
    if (this.end < now) {
      if (this.playing.size) this.late += Math.round((now - this.end) * RATE);  // in the middle of an answer
      this.end = now + DELAY;
    }
    source.start(this.end);
    this.end += buffer.duration;
    this.received += samples.length;
    this.playing.add(source);
    source.onended = () => this.playing.delete(source);
  }

  // What has not been heard yet never will be.
  silence() {
    for (const source of this.playing) source.stop();
    this.playing.clear();
    this.end = 0;
  }

  // As RTCPeerConnection's getStats() has them.
  stats() {
    return {kind: "audio", totalSamplesReceived: this.received, concealedSamples: this.late};
  }

  close() {
    this.silence();
    for (const node of this.nodes) node.disconnect();
    if (this.socket) {
      this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
      this.socket.close(1000);
    }
  }
}
