"""The seed's topology on loopback, each process in the hands of a test: three storage processes and one gateway."""

import socket

import harness as h

STORAGE = ["p0", "p1", "p2"]
ALL = [*STORAGE, "s3"]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def config(ports, target_size, options, devices=None):
    devices = devices or [f'device = "file:data/t{i}?size={target_size}{options}"' for i in range(3)]
    text = '[cluster]\nsecret_file = "cluster.secret"\nlayout = "2+1"\n'
    for i, name in enumerate(STORAGE):
        text += (f'\n[[process]]\nname = "{name}"\nlisten = ["tcp://127.0.0.1:{ports[i]}"]\nadmin = "127.0.0.1:{ports[i + 4]}"\n'
                 + ("cas = true\n" if i == 0 else "") +
                 f'\n[[process.target]]\nname = "t{i}"\n{devices[i]}\nreactor = 0\n')
    return text + f'\n[[process]]\nname = "s3"\nadmin = "127.0.0.1:{ports[7]}"\n\n[process.s3]\nlisten = "127.0.0.1:{ports[3]}"\nregion = "us-east-1"\n'


class Cluster:
    """Formats on the first start; every process can be killed and started again."""

    def __init__(self, folder, target_size="256MiB", options="", devices=None, ready_s=60):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data").mkdir(exist_ok=True)
        self.config = folder / "cobalt.toml"
        self.config.write_text(config(free_ports(8), target_size, options, devices))
        h.cobalt("format", "--config", self.config)
        self.processes, self.ready_s = {}, ready_s

    def start(self, *names):
        started = [self.launch(name) for name in names or ALL]
        for process in started:
            process.wait_ready()
        return self

    def launch(self, name):
        process = h.Process(["server", "--config", self.config, "--process", name], self.folder / f"{name}.log",
                            ready_s=self.ready_s)
        self.processes[name] = process
        return process

    def kill(self, *names):
        for name in names or ALL:
            if name in self.processes:
                self.processes[name].kill()

    @property
    def endpoint(self):
        return self.processes["s3"].s3

    def json(self, command, ok=(0, 4)):
        return h.cobalt_json(command, "--config", self.config, ok=ok)

    def fsck(self):
        h.fsck(["--config", self.config])
