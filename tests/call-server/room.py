"""A room with a loudspeaker, a microphone and an echo between them, made of PulseAudio (Debian's packages pulseaudio, pulseaudio-utils)."""
import os
import pathlib
import subprocess
import tempfile

from running_server import wait_for


class Room:
    """`environment` makes a program use its loudspeaker and microphone."""

    def __init__(self, echo: str = "-10dB"):
        self.folder = tempfile.TemporaryDirectory()
        socket = pathlib.Path(self.folder.name) / "native"
        self.environment = {"PULSE_SERVER": f"unix:{socket}", "PULSE_RUNTIME_PATH": self.folder.name}
        modules = [f"module-native-protocol-unix auth-anonymous=1 socket={socket}", "module-null-sink sink_name=speaker rate=48000",
                   "module-null-sink sink_name=room rate=48000", "module-remap-source source_name=microphone master=room.monitor",
                   "module-loopback source=speaker.monitor sink=room latency_msec=40"]
        self.process = subprocess.Popen(
            ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", *(word for m in modules for word in ("-L", m))],
            env=self._with(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: self._pactl("info").returncode == 0, "PulseAudio")
        for command in (["set-default-sink", "speaker"], ["set-default-source", "microphone"],
                        ["set-sink-input-volume", "0", echo]):  # the loopback is the first that plays
            self._pactl(*command).check_returncode()

    def _with(self) -> dict[str, str]:
        return dict(os.environ, **self.environment)

    def _pactl(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["pactl", *arguments], env=self._with(), capture_output=True)

    def say(self, wav: pathlib.Path):
        """Someone in the room speaks; returns when it is said."""
        subprocess.run(["paplay", "--device=room", str(wav)], env=self._with(), check=True, timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)
        self.folder.cleanup()
