import type { ChildProcess } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { createConnection } from 'node:net';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { eventually } from './processes.ts';
import type { Processes } from './processes.ts';
import { SerialConsole } from './serial.ts';

/** A machine under plain QEMU, in software emulation: for tests that need no libvirt. */
export interface QemuOptions {
  readonly processes: Processes;
  /** Where its serial log, its messages and its sockets lie; one machine per directory. */
  readonly directory: string;
  /** Raw disks, seen as vda, vdb, ... ; or whole -drive values, such as `file=nfs://...`. */
  readonly disks?: readonly string[];
  /** Boots this instead of the first disk. */
  readonly kernel?: {
    readonly image: string;
    readonly initramfs: string;
    readonly options: string;
  };
  readonly memoryMiB?: number;
  readonly chipset?: 'pc' | 'q35';
  /** Which pid ends when: called once the machine is off. */
  readonly onExit?: (code: number | null) => void;
}

export class Qemu {
  readonly serial: SerialConsole;
  readonly #process: ChildProcess;
  readonly #options: QemuOptions;
  readonly #exited: Promise<number | null>;

  constructor(options: QemuOptions) {
    this.#options = options;
    let exited: (code: number | null) => void = () => undefined;
    this.#exited = new Promise((resolve) => (exited = resolve));
    const log = openSync(join(options.directory, 'qemu.log'), 'a');
    this.#process = options.processes.start('qemu-system-x86_64', qemuArguments(options), {
      stdio: ['ignore', log, log],
      onExit: (code) => {
        exited(code);
        options.onExit?.(code);
      },
    });
    closeSync(log);
    this.serial = new SerialConsole({
      logPath: join(options.directory, 'serial.log'),
      commandSocketPath: join(options.directory, 'command.sock'),
    });
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  /** Runs one QMP command (QEMU QMP Reference Manual) and returns what it returned. */
  async qmp(execute: string, args: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    const path = join(this.#options.directory, 'qmp.sock');
    const socket = await eventually('the QMP socket', () => connected(path), 10_000);
    try {
      const messages = jsonLines(socket);
      await messages.next(); // the greeting
      for (const command of [{ execute: 'qmp_capabilities' }, { execute, arguments: args }])
        socket.write(`${JSON.stringify(command)}\n`);
      let answers = 0;
      for await (const message of messages) {
        if ('error' in message)
          throw new Error(`QMP ${execute}: ${JSON.stringify(message['error'])}`);
        if ('return' in message && ++answers === 2) return message['return'];
      }
      throw new Error(`QMP ${execute}: QEMU closed the connection`);
    } finally {
      socket.destroy();
    }
  }

  async pressPowerButton(): Promise<void> {
    await this.qmp('system_powerdown');
  }

  async screenshot(pngPath: string): Promise<void> {
    await this.qmp('screendump', { filename: pngPath, format: 'png' });
  }

  /** The exit code once the machine is off; rejects when it stays on. */
  async off(timeoutMs: number): Promise<number | null> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      const fail = () => reject(new Error(`still on after ${timeoutMs} ms:\n${this.serial.text}`));
      timer = setTimeout(fail, timeoutMs);
    });
    try {
      return await Promise.race([this.#exited, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Pulls the plug, if it is still on. */
  async end(): Promise<void> {
    await this.#options.processes.end(this.#process);
    await this.serial.close();
  }
}

function qemuArguments(options: QemuOptions): string[] {
  const at = (name: string) => join(options.directory, name);
  const drives = (options.disks ?? []).flatMap((disk) => {
    const value = disk.startsWith('file=') ? disk : `file=${disk},format=raw,cache=none`;
    return ['-drive', `${value},if=virtio,discard=unmap`];
  });
  const { kernel } = options;
  const boot =
    kernel === undefined
      ? []
      : ['-kernel', kernel.image, '-initrd', kernel.initramfs, '-append', kernel.options];
  return [
    // /dev/kvm may exist and be useless.
    ...['-accel', 'tcg', '-M', options.chipset ?? 'pc', '-m', String(options.memoryMiB ?? 192)],
    ...['-nodefaults', '-display', 'none', '-vga', 'std'],
    ...['-serial', `file:${at('serial.log')}`],
    ...['-serial', `unix:${at('command.sock')},server=on,wait=off`],
    ...['-qmp', `unix:${at('qmp.sock')},server=on,wait=off`],
    ...['-netdev', 'user,id=net', '-device', 'virtio-net-pci,netdev=net,romfile='],
    ...drives,
    ...boot,
  ];
}

function connected(path: string): Promise<Socket | undefined> {
  return new Promise((resolve) => {
    const socket = createConnection(path);
    socket.once('connect', () => resolve(socket)).once('error', () => resolve(undefined));
  });
}

async function* jsonLines(socket: Socket): AsyncGenerator<Record<string, unknown>> {
  let rest = '';
  for await (const chunk of socket) {
    const lines = (rest + String(chunk)).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) {
      const message: unknown = JSON.parse(line);
      if (typeof message === 'object' && message !== null) yield message as Record<string, unknown>;
    }
  }
}
