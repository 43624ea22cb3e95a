import type { Command } from 'commander';
import { type Commands, examples, follow, type Terminal } from '../lib/terminal.ts';
import { formatBytes, formatDuration, plural, printable } from '../lib/text.ts';
import { formatRelative, formatTime } from '../lib/times.ts';
import { addHypervisor } from './hypervisor-commands.ts';
import type { EventView, ExportEntry } from './schema.ts';
import type { MachineView, SavesetView, Status } from './schema.ts';

/** `rouse status`, `machines`, `savesets`, `exports`, `events` and `hypervisor …`. */
export const catalogCommands: Commands = (program, terminal) => {
  addStatus(program, terminal);
  addMachines(program, terminal);
  addSavesets(program, terminal);
  addExports(program, terminal);
  addEvents(program, terminal);
  addHypervisor(program, terminal);
};

function addStatus(program: Command, terminal: Terminal): void {
  const command = program
    .command('status')
    .description('show whether everything is well, and what is going on')
    .action(async () => {
      const client = await terminal.client();
      const status = (await client.get('/v1/status')) as Status;
      terminal.answer(status, () => printStatus(status, terminal));
    });
  examples(command, ['rouse status']);
}

function printStatus(status: Status, terminal: Terminal): void {
  const { server, proxy, vault, counts } = status;
  const nowMs = terminal.clock.now();
  const fact = (name: string, value: string) =>
    terminal.print(`${name.padEnd(13)}${printable(value)}`);
  const since = (startedMs: number) => formatDuration(Math.max(0, nowMs - startedMs));
  fact('Server', `Rouse ${server.version}, process ${server.pid}, up ${since(server.startedMs)}`);
  fact('Data', server.dataDirectory);
  if (proxy === null) {
    terminal.print(`${'Proxy'.padEnd(13)}${terminal.paint('red', 'does not answer')}`);
  } else {
    fact('Proxy', `${proxy.name}, process ${proxy.pid}, up ${since(proxy.startedMs)}`);
    const { port, mountPort, portmapper } = proxy.nfs;
    fact('NFS', `port ${port}, MOUNT ${mountPort}, portmapper ${portmapper}`);
    const { freeBytes, totalBytes } = proxy.space;
    fact('Space', `${formatBytes(freeBytes)} free of ${formatBytes(totalBytes)}`);
  }
  if (vault !== null) {
    const ratios = `dedup ${ratio(vault.dedupRatio)}, compression ${ratio(vault.compressionRatio)}`;
    const stored = formatBytes(vault.storedBytes);
    fact('Vault', `${formatBytes(vault.logicalBytes)} in ${stored} (${ratios})`);
  }
  fact('Machines', `${counts.machines}, with ${plural(counts.savesets, 'saveset')}`);
  fact('Hypervisors', String(counts.hypervisors));
  fact('Recoveries', `${counts.activeRecoveries} active, ${plural(counts.exports, 'export')}`);
  fact('Backups', `${counts.runningBackups} running`);
  for (const warning of status.warnings) {
    terminal.print(terminal.paint('yellow', `! ${printable(warning)}`));
  }
}

function ratio(value: number): string {
  return `${value.toFixed(2)}x`;
}

function addMachines(program: Command, terminal: Terminal): void {
  const command = program
    .command('machines')
    .description('list machines: those of the hypervisors, and those that savesets remember')
    .action(async () => {
      const client = await terminal.client();
      const answer = (await client.get('/v1/machines')) as {
        readonly machines: readonly MachineView[];
      };
      const nowMs = terminal.clock.now();
      terminal.answer(answer, () =>
        terminal.table(
          [
            { title: 'name', flexible: true, minWidth: 12 },
            { title: 'power', minWidth: 6 },
            { title: 'hypervisor', flexible: true, minWidth: 10 },
            { title: 'savesets', align: 'right', minWidth: 8 },
            { title: 'latest', minWidth: 12 },
            { title: 'size', align: 'right', minWidth: 8 },
          ],
          answer.machines.map((machine) => [
            machine.name,
            machine.power ?? '',
            machine.hypervisor ?? '',
            String(machine.savesets),
            machine.latestSaveset === null
              ? 'never'
              : formatRelative(machine.latestSaveset.takenAtMs, nowMs),
            formatBytes(machine.logicalBytes),
          ]),
          'No machine is known. Add a hypervisor: rouse hypervisor add NAME URI',
        ),
      );
    });
  examples(command, ['rouse machines']);
}

function addSavesets(program: Command, terminal: Terminal): void {
  const command = program
    .command('savesets')
    .description('list savesets, newest first')
    .argument('[machine]', 'of this machine alone')
    .option('--mtree <name>', 'in this part of the vault alone')
    .action(async (machine: string | undefined, options: { readonly mtree?: string }) => {
      const query = new URLSearchParams();
      if (machine !== undefined) query.set('machine', machine);
      if (options.mtree !== undefined) query.set('mtree', options.mtree);
      const client = await terminal.client();
      const answer = (await client.get(`/v1/savesets?${query}`)) as {
        readonly savesets: readonly SavesetView[];
      };
      terminal.answer(answer, () => printSavesets(answer.savesets, terminal));
    });
  examples(command, ['rouse savesets', 'rouse savesets web01']);
}

function printSavesets(savesets: readonly SavesetView[], terminal: Terminal): void {
  terminal.table(
    [
      { title: 'id', minWidth: 10 },
      { title: 'machine', flexible: true, minWidth: 8 },
      { title: 'taken', minWidth: 16 },
      { title: 'kind', minWidth: 11 },
      { title: 'size', align: 'right', minWidth: 8 },
      { title: 'new', align: 'right', minWidth: 8 },
    ],
    savesets.map((saveset) => [
      saveset.id,
      saveset.machine.name,
      formatTime(saveset.takenAtMs),
      saveset.kind,
      formatBytes(saveset.logicalBytes),
      formatBytes(saveset.newBytes),
    ]),
    'There is no saveset. Make one: rouse backup MACHINE',
  );
}

function addExports(program: Command, terminal: Terminal): void {
  const command = program
    .command('exports')
    .description('list NFS exports: whom they answer, and what was asked of them')
    .action(async () => {
      const client = await terminal.client();
      const answer = (await client.get('/v1/exports')) as {
        readonly exports: readonly ExportEntry[];
      };
      terminal.answer(answer, () => printExports(answer.exports, terminal));
    });
  examples(command, ['rouse exports']);
}

function printExports(exports: readonly ExportEntry[], terminal: Terminal): void {
  const nowMs = terminal.clock.now();
  terminal.table(
    [
      { title: 'path', minWidth: 20, cut: 'middle' },
      { title: 'clients', flexible: true, minWidth: 9 },
      { title: 'read', align: 'right', minWidth: 8 },
      { title: 'written', align: 'right', minWidth: 8 },
      { title: 'last used', minWidth: 9 },
    ],
    exports.map((entry) => [
      entry.path,
      entry.clients.join(' '),
      formatBytes(entry.counters.readBytes),
      formatBytes(entry.counters.writtenBytes),
      lastUse(entry, nowMs),
    ]),
    'Nothing is exported.',
  );
}

function lastUse(entry: ExportEntry, nowMs: number): string {
  if (entry.connected.length > 0) return 'connected';
  return entry.lastUsedMs === undefined ? 'never' : formatRelative(entry.lastUsedMs, nowMs);
}

function addEvents(program: Command, terminal: Terminal): void {
  const command = program
    .command('events')
    .description('list what happened, oldest first')
    .option('--limit <count>', 'at most so many, the latest ones', '100')
    .option('--follow', 'and go on with what happens from now on, until Ctrl-C')
    .addHelpText('after', '\nWith --follow --json, every event is one line of JSON.')
    .action(async (options: { readonly limit: string; readonly follow?: true }) => {
      const client = await terminal.client();
      const query = new URLSearchParams({ limit: options.limit });
      const answer = (await client.get(`/v1/events?${query}`)) as {
        readonly events: readonly EventView[];
      };
      if (options.follow === undefined) {
        terminal.answer(answer, () => {
          if (answer.events.length === 0) terminal.print('Nothing happened yet.');
          for (const event of answer.events) printEvent(event, terminal);
        });
        return;
      }
      await followEvents(answer.events, terminal);
    });
  examples(command, ['rouse events --limit 20', 'rouse events --follow']);
}

async function followEvents(first: readonly EventView[], terminal: Terminal): Promise<void> {
  const show = (event: EventView) => terminal.answer(event, () => printEvent(event, terminal));
  for (const event of first) show(event);
  const after = first.at(-1)?.id ?? 0;
  const controller = new AbortController();
  const stopListening = terminal.onInterrupt(() => controller.abort());
  try {
    const path = `/v1/events?after=${after}`;
    for await (const event of follow<EventView>(terminal, path, controller.signal)) show(event);
  } finally {
    stopListening();
  }
}

function printEvent(event: EventView, terminal: Terminal): void {
  const style = { info: undefined, warning: 'yellow', error: 'red' } as const;
  const chosen = style[event.level];
  const text = printable(event.message);
  const level = event.level === 'info' ? '' : `${event.level}: `;
  const line = `${formatTime(event.atMs)}  ${level}${text}`;
  terminal.print(chosen === undefined ? line : terminal.paint(chosen, line));
}
