import { basename, extname, resolve } from 'node:path';
import type { Command } from 'commander';
import { errorTable, type ErrorCode, RouseError } from '../errors.ts';
import { type Commands, examples, follow, Interrupted, repeated } from '../lib/terminal.ts';
import type { Terminal } from '../lib/terminal.ts';
import { fitText, formatBytes, formatDuration, formatRate, padText } from '../lib/text.ts';
import { printable, shellWord, wrapText } from '../lib/text.ts';
import { formatRelative } from '../lib/times.ts';
import { commandLimits } from '../limits.ts';
import type { Backup, BackupRequestInput } from './schema.ts';

/** `rouse backup` and `rouse backups`. */
export const backupCommands: Commands = (program, terminal) => {
  addBackup(program, terminal);
  addBackups(program, terminal);
};

interface BackupOptions {
  readonly file?: readonly string[];
  readonly format?: string;
  readonly name?: string;
  readonly config?: string;
  readonly nvram?: string;
  readonly hypervisor?: string;
  readonly full?: true;
  readonly mtree?: string;
  readonly proxy?: string;
  readonly wait: boolean;
}

function addBackup(program: Command, terminal: Terminal): void {
  const command = program
    .command('backup')
    .description('back up a running or stopped machine, or disks in files')
    .argument('[machine]', 'name or id of a machine of a hypervisor; not with --file')
    .option('--hypervisor <name>', 'the hypervisor, when several have such a machine')
    .option('--full', 'read everything, although an incremental would do')
    .option('--file <disk>', 'a raw, qcow2 or vmdk file (repeatable)', repeated)
    .addOption(
      program
        .createOption('--format <format>', 'format of the files; found out when missing')
        .choices(['raw', 'qcow2', 'vmdk']),
    )
    .option('--name <name>', 'name of the machine that the files are')
    .option('--config <file>', 'its configuration: libvirt XML or .vmx')
    .option('--nvram <file>', 'its UEFI variables')
    .option('--mtree <name>', 'the part of the vault that takes it in')
    .option('--proxy <name>', 'the proxy that reads and stores it (default: that of the server)')
    .option('--no-wait', 'return at once instead of showing progress')
    .action((machine: string | undefined, options: BackupOptions) =>
      backup(machine, options, terminal),
    );
  examples(command, [
    'rouse backup web01',
    'rouse backup --file web01.qcow2 --config web01.xml --name web01',
  ]);
}

async function backup(
  machine: string | undefined,
  options: BackupOptions,
  terminal: Terminal,
): Promise<void> {
  const request = requestOf(machine, options);
  const client = await terminal.client();
  const begun = (await client.post('/v1/backups', request)) as Backup;
  if (!options.wait) {
    terminal.answer(begun, () => {
      terminal.print(`Backup ${begun.id} of ${printable(begun.machine.name)} has begun.`);
      terminal.print('→ rouse backups   shows its progress');
    });
    return;
  }
  const ended = await followBackup(begun, terminal);
  if (ended.state === 'failed') throw failureOf(ended);
  if (ended.state === 'cancelled') {
    throw new RouseError('cancelled', `the backup of ${ended.machine.name} was cancelled`, {
      advice: 'What was stored is reused by the next backup.',
      details: { backup: ended.id },
    });
  }
  terminal.answer(ended, () => printEnd(ended, terminal));
}

function requestOf(machine: string | undefined, options: BackupOptions): BackupRequestInput {
  const { file, name, config, nvram, format, hypervisor, full, mtree, proxy } = options;
  const wrong = (message: string, advice: string) =>
    new RouseError('bad-request', message, { advice });
  const place = {
    ...(mtree === undefined ? {} : { mtree }),
    ...(proxy === undefined ? {} : { proxy }),
  };
  if (file === undefined) {
    if (machine === undefined) {
      throw wrong('backup needs a machine, or --file DISK', 'List the machines: rouse machines');
    }
    const extra = Object.entries({ name, config, nvram, format }).find(([, value]) => value);
    if (extra !== undefined) {
      throw wrong(`--${extra[0]} is for a backup of files`, 'Leave it out, or give --file DISK.');
    }
    return {
      machine,
      ...(hypervisor === undefined ? {} : { hypervisor }),
      ...(full === undefined ? {} : { full: true }),
      ...place,
    };
  }
  if (machine !== undefined) {
    const advice = `For the machine alone: rouse backup ${machine}. For files: --name ${machine}.`;
    throw wrong(`both the machine "${machine}" and --file were given`, advice);
  }
  if (full !== undefined || hypervisor !== undefined) {
    const option = full === undefined ? '--hypervisor' : '--full';
    throw wrong(`${option} is for a machine of a hypervisor`, 'Files are always read whole.');
  }
  const [first = ''] = file;
  return {
    files: {
      name: name ?? basename(first, extname(first)),
      disks: file.map((path) => ({
        path: resolve(path),
        ...(format === undefined ? {} : { format: format as 'raw' | 'qcow2' | 'vmdk' }),
      })),
      ...(config === undefined ? {} : { configuration: resolve(config) }),
      ...(nvram === undefined ? {} : { nvram: resolve(nvram) }),
    },
    ...place,
  };
}

/** Shows its progress until it has ended. Ctrl-C asks whether to cancel it. */
async function followBackup(begun: Backup, terminal: Terminal): Promise<Backup> {
  const controller = new AbortController();
  const path = `/v1/backups/${begun.id}`;
  const display = terminal.json ? undefined : new Progress(terminal);
  let last = begun;
  let asking: Promise<void> | undefined;
  const stopListening = terminal.onInterrupt(() => {
    asking ??= cancelOrNot(begun, terminal, display, controller).finally(() => {
      asking = undefined;
    });
  });
  try {
    for await (const view of follow<Backup>(terminal, `${path}/events`, controller.signal)) {
      last = view;
      display?.show(view);
    }
    await asking;
  } finally {
    display?.end();
    stopListening();
  }
  if (controller.signal.aborted) throw new Interrupted();
  return last;
}

/** Without a terminal to ask at, Ctrl-C means cancel: nobody would watch it any more. */
async function cancelOrNot(
  begun: Backup,
  terminal: Terminal,
  display: Progress | undefined,
  controller: AbortController,
): Promise<void> {
  const name = printable(begun.machine.name);
  display?.pause();
  if (terminal.interactive && !terminal.json) {
    const yes = await terminal.ask(`Cancel the backup of ${name}? [y/N] `);
    if (!yes) {
      terminal.note(`The backup goes on in the background: rouse backups`);
      controller.abort();
      return;
    }
  }
  terminal.note(`Cancelling the backup of ${name}.`);
  const client = await terminal.client();
  await client.post(`/v1/backups/${begun.id}/cancel`).catch((error: unknown) => {
    // It may have ended in this very moment: then the stream says how.
    if (!(error instanceof RouseError && error.code === 'wrong-state')) controller.abort();
  });
}

class Progress {
  readonly #terminal: Terminal;
  readonly #live: ReturnType<Terminal['live']> | undefined;
  #timer: NodeJS.Timeout | undefined;
  #view: Backup | undefined;
  #quarter = -1;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
    if (!terminal.interactive) return;
    this.#live = terminal.live();
    this.#timer = setInterval(() => this.#draw(), commandLimits.redrawMs);
  }

  show(view: Backup): void {
    this.#view = view;
    if (this.#live !== undefined || view.state !== 'running') return;
    const quarter = view.totalBytes > 0 ? Math.floor((4 * view.doneBytes) / view.totalBytes) : 0;
    if (quarter <= this.#quarter) return;
    this.#quarter = quarter;
    this.#terminal.print(figures(view, this.#terminal));
  }

  #draw(): void {
    const view = this.#view;
    if (view === undefined || view.state !== 'running') return;
    this.#live?.show([bar(view, this.#terminal), figures(view, this.#terminal)]);
  }

  /** Stands still while a question is asked below. */
  pause(): void {
    clearInterval(this.#timer);
    this.#live?.end();
  }

  end(): void {
    this.pause();
  }
}

function bar(view: Backup, terminal: Terminal): string {
  const share = view.totalBytes > 0 ? Math.min(1, view.doneBytes / view.totalBytes) : 0;
  const name = padText(fitText(printable(view.machine.name), 20), 20);
  const cells = Math.max(10, terminal.width - 30);
  const full = Math.round(share * cells);
  const percent = `${Math.floor(share * 100)}%`.padStart(4);
  const filled = terminal.paint('cyan', '█'.repeat(full));
  return `${name} ${filled}${terminal.paint('dim', '░'.repeat(cells - full))} ${percent}`;
}

function figures(view: Backup, terminal: Terminal): string {
  const total = view.totalBytes > 0 ? ` of ${formatBytes(view.totalBytes)}` : '';
  const left = view.etaMs === null || view.etaMs <= 0 ? '' : `, ${formatDuration(view.etaMs)} left`;
  if (view.waitsFor !== null) {
    return fitText(`waits for ${printable(view.waitsFor)}`, terminal.width - 1);
  }
  const text =
    `${view.kind ?? (view.totalBytes > 0 ? 'reading' : 'preparing')}: ${formatBytes(view.doneBytes)}${total} at ` +
    `${formatRate(view.bytesPerSecond)}${left}; new ${formatBytes(view.newBytes)}, ` +
    `known ${formatBytes(view.knownBytes)}`;
  return fitText(text, terminal.width - 1);
}

function printEnd(view: Backup, terminal: Terminal): void {
  const took = formatDuration((view.endedMs ?? view.startedMs) - view.startedMs);
  const name = printable(view.machine.name);
  const kind = view.kind === null ? '' : ` (${view.kind})`;
  terminal.print(terminal.paint('green', `${name} is backed up${kind} in ${took}.`));
  if (view.fullBecause !== null) terminal.print(`Full, because ${printable(view.fullBecause)}.`);
  const known = formatBytes(view.knownBytes);
  terminal.print(`Its disks held ${formatBytes(view.newBytes)} new, ${known} known already.`);
  terminal.print(`Consistency: ${consistencyWords[view.consistency ?? 'crash']}.`);
  for (const warning of view.warnings) {
    for (const line of wrapText(`! ${warning}`, terminal.width - 1))
      terminal.print(terminal.paint('yellow', line));
  }
  terminal.print(`Saveset ${view.savesetId ?? 'unknown'}.`);
  terminal.print(`→ rouse recover ${shellWord(view.machine.name)} --power-on`);
}

const consistencyWords = {
  crash: 'as after a power cut',
  filesystem: 'file systems were frozen',
  offline: 'the machine was off',
};

function failureOf(view: Backup): RouseError {
  const { code = 'internal', message = 'no reason was given', advice } = view.error ?? {};
  const known: ErrorCode = code in errorTable ? (code as ErrorCode) : 'internal';
  return new RouseError(known, `the backup of ${view.machine.name} failed: ${message}`, {
    ...(advice === undefined ? {} : { advice }),
    details: { backup: view.id },
  });
}

function addBackups(program: Command, terminal: Terminal): void {
  const command = program
    .command('backups')
    .description('list backups, newest first')
    .argument('[machine]', 'of this machine alone')
    .action(async (machine: string | undefined) => {
      const query = machine === undefined ? '' : `?${new URLSearchParams({ machine })}`;
      const client = await terminal.client();
      const answer = (await client.get(`/v1/backups${query}`)) as {
        readonly backups: readonly Backup[];
      };
      terminal.answer(answer, () => printBackups(answer.backups, terminal));
    });
  examples(command, ['rouse backups', 'rouse backups web01']);
}

function printBackups(backups: readonly Backup[], terminal: Terminal): void {
  const nowMs = terminal.clock.now();
  terminal.table(
    [
      { title: 'id', minWidth: 10 },
      { title: 'machine', flexible: true, minWidth: 8 },
      { title: 'state', minWidth: 9 },
      { title: 'kind', minWidth: 11 },
      { title: 'done', align: 'right' },
      { title: 'new', align: 'right', minWidth: 8 },
      { title: 'started', minWidth: 12 },
    ],
    backups.map((view) => [
      view.id,
      view.machine.name,
      view.waitsFor === null ? view.state : 'waiting',
      view.kind ?? '',
      view.totalBytes > 0 ? `${Math.floor((100 * view.doneBytes) / view.totalBytes)}%` : '',
      formatBytes(view.newBytes),
      formatRelative(view.startedMs, nowMs),
    ]),
    'No backup was made yet. Make one: rouse backup MACHINE',
  );
}
