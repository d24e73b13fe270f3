// The microphone's sound in blocks of 20 ms: 16-bit samples at 24 kHz. What is above half of that has been filtered out before.
const RATE = 24000, BLOCK = RATE / 50;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(BLOCK);
    this.filled = 0;
    this.last = 0;  // sample, of the quantum before
    this.at = 0;    // place of the next one to be made, counted from that
  }

  process([[input]]) {
    if (!input) return true;
    for (; this.at < input.length; this.at += sampleRate / RATE) {
      const i = Math.floor(this.at), before = i > 0 ? input[i - 1] : this.last;
      const sample = before + (input[i] - before) * (this.at - i);
      this.block[this.filled++] = 32767 * Math.max(-1, Math.min(1, sample));
      if (this.filled < BLOCK) continue;
      this.port.postMessage(this.block.buffer, [this.block.buffer]);
      this.block = new Int16Array(BLOCK);
      this.filled = 0;
    }
    this.at -= input.length;
    this.last = input[input.length - 1];
    return true;
  }
}

registerProcessor("capture", Capture);
