import type { Command } from 'commander';
import { labelsOf } from '../placement/commands.ts';
import { type ErrorCode, RouseError } from '../errors.ts';
import { type Commands, examples, follow, leaseOf, repeated } from '../lib/terminal.ts';
import type { Terminal } from '../lib/terminal.ts';
import { formatBytes, parseBytes, printable } from '../lib/text.ts';
import { formatRelative, formatTime, parseTime } from '../lib/times.ts';
import { showPlan } from './plan-text.ts';
import type { Recovery, RecoveryMode, RecoveryRequestInput } from './schema.ts';
import { outcomeLines, stepLines } from './steps-text.ts';
import { addSeal } from './seal-commands.ts';
import { followRecovery, recoveryPath, writePicture } from './watch.ts';

/** `rouse recover`, `recoveries`, and what is done with one afterwards. */
export const recoveryCommands: Commands = (program, terminal) => {
  addRecover(program, terminal);
  addList(program, terminal);
  addShow(program, terminal);
  addWatch(program, terminal);
  addRelocate(program, terminal);
  addRenew(program, terminal);
  addCancel(program, terminal, 'cancel');
  addResume(program, terminal);
  addSeal(program, terminal, 'seal');
};

interface RecoverOptions {
  readonly mode: RecoveryMode;
  readonly saveset?: string;
  readonly at?: string;
  readonly hypervisor?: string;
  readonly host?: string;
  readonly proxy?: string;
  readonly without?: readonly string[];
  readonly prefer?: readonly string[];
  readonly name?: string;
  readonly powerOn?: true;
  readonly identity: 'new' | 'keep';
  readonly connectNetworks?: true;
  readonly lease?: string;
  readonly client?: readonly string[];
  readonly datastore?: string;
  readonly into?: string;
  readonly disks?: readonly string[];
  readonly relocateTo?: string;
  readonly relocateAt?: string;
  readonly dryRun?: true;
  readonly wait: boolean;
}

const modeHelp =
  'instant: run it from the backup; publish: only an NFS export; ' +
  'new: restore it whole; flr: attach its disks to a running machine';

/** `vda,vdb`, or the option several times. */
function names(value: string, before: readonly string[] | undefined): readonly string[] {
  const more = value.split(',').map((name) => name.trim());
  return [...(before ?? []), ...more.filter((name) => name !== '')];
}

function addRecover(program: Command, terminal: Terminal): void {
  const command = program
    .command('recover')
    .description('wake a machine from its backup, attach or publish its disks, or restore it')
    .argument('[machine]', 'name or id of the machine; not needed with --saveset');
  const mode = command
    .createOption('--mode <mode>', modeHelp)
    .choices(['instant', 'publish', 'new', 'flr'])
    .default('instant');
  const identity = command
    .createOption('--identity <which>', 'new: fresh UUID and MACs; keep: those of the backup')
    .choices(['new', 'keep'])
    .default('new');
  command
    .addOption(mode)
    .option('--saveset <id>', 'this saveset instead of the latest')
    .option('--at <time>', 'the latest saveset at or before then, such as "yesterday 22:00"')
    .option('--host <host>', 'the hypervisor host to run it on')
    .option('--hypervisor <name>', 'the hypervisor manager, when there are several')
    .option('--proxy <name>', 'the proxy that serves it')
    .option('--without <name>', 'not this proxy or host (repeatable)', repeated)
    .option('--prefer <key=value>', 'rather a proxy with this label (repeatable)', repeated)
    .option('--name <name>', 'name of the recovered machine')
    .option('--power-on', 'power it on')
    .addOption(identity)
    .option('--connect-networks', 'connect its networks, which a copy has disconnected')
    .option('--lease <duration>', 'how long it stays, such as 5d or 12h (default: 10d)')
    .option('--client <address>', 'publish: who may mount it (repeatable)', repeated)
    .option('--datastore <name>', 'new: where the disks go')
    .option('--into <machine>', 'flr: the running machine that sees the disks')
    .option('--disks <names>', 'flr: these disks instead of all, such as vda,vdb', names)
    .option('--relocate-to <datastore>', 'move it to production storage once it runs')
    .option('--relocate-at <time>', 'and not before then, such as "tomorrow 2am"')
    .option('--dry-run', 'show the plan and change nothing')
    .option('--no-wait', 'return at once instead of showing the steps')
    .action((machine: string | undefined, options: RecoverOptions) =>
      recover(machine, options, terminal),
    );
  examples(command, [
    'rouse recover web01 --power-on',
    'rouse recover web01 --at "yesterday 22:00" --host host1 --lease 5d',
    'rouse recover web01 --mode publish --client 192.0.2.7 --json',
    'rouse recover web01 --mode flr --into helper --disks vdb',
    'rouse recover web01 --mode new --datastore prod --name web02',
  ]);
  addSeal(command, terminal, 'seal');
  addCancel(command, terminal, 'end');
}

async function recover(
  machine: string | undefined,
  options: RecoverOptions,
  terminal: Terminal,
): Promise<void> {
  const request = await requestOf(machine, options, terminal);
  const client = await terminal.client();
  const answer = await client.post('/v1/recoveries', request);
  if (request.dryRun === true) return showPlan(answer, terminal);
  const begun = answer as Recovery;
  if (!options.wait) {
    terminal.answer(begun, () => {
      terminal.print(`Recovery ${begun.id} of ${printable(begun.machine.name)} has begun.`);
      terminal.print(`→ rouse watch ${begun.id}   shows its steps`);
    });
    return;
  }
  const ready = ['available', 'relocating', 'parked', 'done', 'failed', 'cancelled'];
  const settled = request.mode === 'new' ? ready.slice(2) : ready;
  const view = await followRecovery(begun.id, terminal, (state) => settled.includes(state));
  if (view.state === 'cancelled') {
    throw new RouseError('cancelled', `recovery ${view.id} was cancelled`);
  }
  if (request.mode === 'publish') terminal.answer(publishedOf(view), () => finish(view, terminal));
  else terminal.answer(view, () => finish(view, terminal));
}

async function requestOf(
  machine: string | undefined,
  options: RecoverOptions,
  terminal: Terminal,
): Promise<RecoveryRequestInput> {
  if (machine === undefined && options.saveset === undefined) {
    throw new RouseError('bad-request', 'recover needs a machine, or --saveset ID', {
      advice: 'List the machines: rouse machines',
    });
  }
  if (options.mode === 'publish' && options.client === undefined) {
    throw new RouseError('bad-request', '--mode publish needs --client: who may mount it?', {
      advice: 'Name the address of the NFS client: --client 192.0.2.7',
    });
  }
  if (options.mode === 'flr' && options.into === undefined) {
    throw new RouseError('bad-request', '--mode flr needs --into: which running machine?', {
      advice: 'Name the machine whose guest shall see the disks: --into helper',
    });
  }
  if (options.relocateAt !== undefined && options.relocateTo === undefined) {
    throw new RouseError('bad-request', '--relocate-at needs --relocate-to DATASTORE');
  }
  const nowMs = terminal.clock.now();
  const { saveset, at, hypervisor, host, proxy, name, lease, client, datastore } = options;
  const { into, disks } = options;
  return {
    mode: options.mode,
    identity: options.identity,
    ...(machine === undefined ? {} : { machine }),
    ...(saveset === undefined ? {} : { saveset }),
    ...(at === undefined ? {} : { at: await parseTime(at, '--at', nowMs) }),
    ...(hypervisor === undefined ? {} : { hypervisor }),
    ...(host === undefined ? {} : { host }),
    ...(proxy === undefined ? {} : { proxy }),
    ...(options.without === undefined ? {} : { without: [...options.without] }),
    ...(options.prefer === undefined ? {} : { prefer: labelsOf(options.prefer) }),
    ...(name === undefined ? {} : { name }),
    ...(options.powerOn === undefined ? {} : { powerOn: true }),
    ...(options.connectNetworks === undefined ? {} : { connectNetworks: true }),
    ...(lease === undefined ? {} : { leaseMs: await leaseOf(lease, nowMs) }),
    ...(client === undefined ? {} : { clients: [...client] }),
    ...(datastore === undefined ? {} : { datastore }),
    ...(into === undefined ? {} : { into }),
    ...(disks === undefined ? {} : { disks: [...disks] }),
    ...(await relocationOf(options, nowMs)),
    ...(options.dryRun === undefined ? {} : { dryRun: true }),
  };
}

async function relocationOf(options: RecoverOptions, nowMs: number) {
  const { relocateTo, relocateAt } = options;
  if (relocateTo === undefined) return {};
  if (relocateAt === undefined) return { relocateTo, relocateAt: 'at once' as const };
  return { relocateTo, relocateAt: await futureTime(relocateAt, '--relocate-at', nowMs) };
}

async function futureTime(text: string, what: string, nowMs: number): Promise<number> {
  const at = await parseTime(text, what, nowMs, 'future');
  if (at >= nowMs) return at;
  throw new RouseError('bad-request', `${what} "${text}" is in the past (${formatTime(at)})`, {
    advice: 'Give a time to come, or leave it out for at once.',
  });
}

/** The shape that scripts read: exactly this. */
function publishedOf(view: Recovery): object {
  const { path, nfsPort, mountPort } = view.export ?? {};
  return {
    recovery: view.id,
    export: { path, nfsPort, mountPort },
    disks: view.disks.map((disk) => ({ path: disk.path, sizeBytes: disk.sizeBytes })),
  };
}

function finish(view: Recovery, terminal: Terminal): void {
  for (const line of outcomeLines(view, terminal, terminal.clock.now())) terminal.print(line);
}

function addList(program: Command, terminal: Terminal): void {
  const command = program
    .command('recoveries')
    .description('list the recoveries that still hold something')
    .option('--all', 'those that have ended as well')
    .option('--machine <name>', 'of this machine alone')
    .action(async (options: { readonly all?: true; readonly machine?: string }) => {
      const query = new URLSearchParams();
      if (options.all === undefined) query.set('active', 'true');
      if (options.machine !== undefined) query.set('machine', options.machine);
      const client = await terminal.client();
      const answer = (await client.get(`/v1/recoveries?${query}`)) as {
        readonly recoveries: readonly Recovery[];
      };
      terminal.answer(answer, () => printRecoveries(answer.recoveries, terminal));
    });
  examples(command, ['rouse recoveries', 'rouse recoveries --all --machine web01']);
}

function printRecoveries(recoveries: readonly Recovery[], terminal: Terminal): void {
  const nowMs = terminal.clock.now();
  terminal.table(
    [
      { title: 'id', minWidth: 10 },
      { title: 'name', flexible: true, minWidth: 8 },
      { title: 'mode', minWidth: 7 },
      { title: 'state', minWidth: 10 },
      { title: 'host', flexible: true, minWidth: 6 },
      { title: 'ends', minWidth: 10 },
      { title: 'written', align: 'right', minWidth: 8 },
    ],
    recoveries.map((view) => [
      view.id,
      view.name,
      view.mode,
      view.state,
      view.host ?? '',
      view.leaseEndsMs === null || view.endedMs !== null
        ? ''
        : formatRelative(view.leaseEndsMs, nowMs),
      formatBytes(view.writtenBytes),
    ]),
    'No recovery holds anything. Begin one: rouse recover MACHINE --power-on',
  );
}

function addShow(program: Command, terminal: Terminal): void {
  const command = program
    .command('show')
    .description('show one recovery: its steps, state, lease and disks')
    .argument('<recovery>', 'id or name of the recovery, or its machine')
    .option('--picture <file>', "save a picture of the machine's screen (PNG)")
    .action(async (reference: string, options: { readonly picture?: string }) => {
      const client = await terminal.client();
      const view = (await client.get(recoveryPath(reference))) as Recovery;
      if (options.picture !== undefined) {
        const picture = await client.bytes(`${recoveryPath(view.id)}/picture`);
        await writePicture(options.picture, picture);
      }
      terminal.answer(view, () => printOne(view, options.picture, terminal));
    });
  examples(command, ['rouse show web01', 'rouse show k3f9x2m7qa --picture screen.png']);
}

function printOne(view: Recovery, picture: string | undefined, terminal: Terminal): void {
  const fact = (name: string, value: string | null) => {
    if (value !== null) terminal.print(`${name.padEnd(12)}${printable(value)}`);
  };
  fact('Recovery', view.id);
  fact('Name', view.name);
  fact('Machine', `${view.machine.name} (${view.machine.id})`);
  fact('Saveset', `${view.saveset.id}, taken ${formatTime(view.saveset.takenAtMs)}`);
  fact('Mode', view.mode);
  fact('State', view.state);
  fact('Hypervisor', view.hypervisor);
  fact('Host', view.host);
  fact('Proxy', view.proxy);
  fact('Datastore', view.datastore);
  fact('Target', view.target?.name ?? null);
  fact('Clone', view.clonePath);
  if (view.export !== null) {
    const { address, path, nfsPort, mountPort } = view.export;
    fact('Export', `${address}:${path} (NFS ${nfsPort}, MOUNT ${mountPort})`);
  }
  fact('Written', formatBytes(view.writtenBytes));
  for (const disk of view.disks) fact('Disk', `${disk.path}, ${formatBytes(disk.sizeBytes)}`);
  fact('Picture', picture ?? null);
  terminal.print('');
  for (const line of stepLines(view, terminal, terminal.clock.now(), true)) terminal.print(line);
  terminal.print('');
  finish(view, terminal);
}

function addWatch(program: Command, terminal: Terminal): void {
  const command = program
    .command('watch')
    .description('show the thirteen steps of a recovery live until it has ended')
    .argument('<recovery>', 'id or name of the recovery, or its machine')
    .addHelpText('after', '\nWith --json, every change is one line of JSON.')
    .action(async (reference: string) => {
      if (terminal.json) {
        const path = `${recoveryPath(reference)}/events`;
        for await (const view of follow(terminal, path, new AbortController().signal)) {
          terminal.answer(view, () => undefined);
        }
        return;
      }
      const ended = ['done', 'failed', 'cancelled'];
      const view = await followRecovery(reference, terminal, (state) => ended.includes(state));
      finish(view, terminal);
    });
  examples(command, ['rouse watch web01']);
}

interface RelocateOptions {
  readonly to?: string;
  readonly at?: string;
  readonly bandwidth?: string;
  readonly wait: boolean;
}

function addRelocate(program: Command, terminal: Terminal): void {
  const command = program
    .command('relocate')
    .description('move the disks of a running machine to production storage')
    .argument('<recovery>', 'id or name of the recovery, or its machine')
    .option('--to <datastore>', 'where to; needed unless the recovery named it')
    .option('--at <time>', 'begin then, such as "tonight 23:00", instead of at once')
    .option('--bandwidth <bytes>', 'at most so many bytes a second, such as 50M')
    .option('--no-wait', 'return at once instead of showing the steps')
    .action(async (reference: string, options: RelocateOptions) => {
      const nowMs = terminal.clock.now();
      const { to, at, bandwidth } = options;
      const client = await terminal.client();
      const request = {
        ...(to === undefined ? {} : { datastore: to }),
        ...(at === undefined ? {} : { at: await futureTime(at, '--at', nowMs) }),
        ...(bandwidth === undefined ? {} : { bandwidthBytesPerSecond: parseBytes(bandwidth) }),
      };
      const path = `${recoveryPath(reference)}/relocate`;
      const begun = (await client.post(path, request)) as Recovery;
      await settle(begun, options.wait && at === undefined, ['available'], terminal);
    });
  examples(command, [
    'rouse relocate web01 --to prod',
    'rouse relocate web01 --to prod --at "tomorrow 2am" --bandwidth 50M',
  ]);
}

/** Waits until the recovery has come to one of the states, or has ended otherwise. */
async function settle(
  begun: Recovery,
  wait: boolean,
  states: readonly string[],
  terminal: Terminal,
): Promise<void> {
  const settled = [...states, 'failed', 'cancelled', 'parked', 'done'];
  const view = wait
    ? await followRecovery(begun.id, terminal, (state) => settled.includes(state))
    : begun;
  if (wait && view.state === 'available') throw notMoved(view);
  terminal.answer(view, () => finish(view, terminal));
}

/** Nothing is lost, and nothing is done: a script has to see that by the exit code. */
function notMoved({ id, name, relocation }: Recovery): RouseError {
  const error = relocation?.error ?? null;
  const to = relocation?.target ?? 'production';
  if (error === null) {
    return new RouseError('cancelled', `the relocation of ${name} to ${to} was stopped`, {
      advice: `It runs on from its backup. Once more: rouse relocate ${id} --to ${to}`,
    });
  }
  // The code is one of the table's: the server wrote it.
  const { code, message, advice } = error as { code: ErrorCode; message: string; advice: string };
  const what = `${name} was not moved to ${to} and runs on from its backup: ${message}`;
  return new RouseError(code, what, { advice });
}

function addRenew(program: Command, terminal: Terminal): void {
  const command = program
    .command('renew')
    .description('set a new end of the lease, or keep what a parked one wrote for longer')
    .argument('<recovery>', 'id or name of the recovery, or its machine')
    .requiredOption('--lease <duration>', 'from now, such as 5d or 12h, or a time to come')
    .action(async (reference: string, options: { readonly lease: string }) => {
      const leaseMs = await leaseOf(options.lease, terminal.clock.now());
      const client = await terminal.client();
      const path = `${recoveryPath(reference)}/renew`;
      const view = (await client.post(path, { leaseMs })) as Recovery;
      terminal.answer(view, () => {
        const end = view.leaseEndsMs ?? 0;
        const relative = formatRelative(end, terminal.clock.now());
        const name = printable(view.name);
        const what =
          view.state === 'parked'
            ? `What ${name} wrote is kept until`
            : `The lease of ${name} ends`;
        terminal.print(`${what} ${formatTime(end)} (${relative}).`);
      });
    });
  examples(command, ['rouse renew web01 --lease 5d', 'rouse renew web01 --lease "friday 18:00"']);
}

function addCancel(parent: Command, terminal: Terminal, name: 'cancel' | 'end'): void {
  const command = parent
    .command(name)
    .description('end a recovery and clean up; what was written is discarded')
    .argument('<recovery>', 'id or name of the recovery, or its machine')
    .option('--keep-writes', 'park it instead: off, and what was written is kept')
    .option('--no-wait', 'return at once instead of showing the steps')
    .action(
      async (
        reference: string,
        options: { readonly keepWrites?: true; readonly wait: boolean },
      ) => {
        const client = await terminal.client();
        const request = { keepWrites: options.keepWrites ?? false };
        const path = `${recoveryPath(reference)}/cancel`;
        const begun = (await client.post(path, request)) as Recovery;
        const isStopping = begun.state === 'relocating';
        const over = (state: string) => state !== 'relocating';
        const view =
          isStopping && options.wait ? await followRecovery(begun.id, terminal, over) : begun;
        if (view.state === 'available') return runsOn(view, terminal);
        await settle(view, options.wait, [], terminal);
      },
    );
  examples(command, ['rouse cancel web01', 'rouse cancel web01 --keep-writes']);
}

/** A cancel during relocation stops that alone: the machine is not taken away by one word. */
function runsOn(view: Recovery, terminal: Terminal): void {
  terminal.answer(view, () => {
    terminal.print(`Its relocation is stopped; ${printable(view.name)} runs on from its backup.`);
    terminal.print(`→ rouse cancel ${view.id}   ends the recovery itself`);
  });
}

function addResume(program: Command, terminal: Terminal): void {
  const command = program
    .command('resume')
    .description('run a parked recovery again, with all that it wrote')
    .argument('<recovery>', 'id or name of the recovery, or its machine')
    .option('--no-wait', 'return at once instead of showing the steps')
    .action(async (reference: string, options: { readonly wait: boolean }) => {
      const client = await terminal.client();
      const begun = (await client.post(`${recoveryPath(reference)}/resume`)) as Recovery;
      if (!options.wait) return terminal.answer(begun, () => finish(begun, terminal));
      const settled = ['available', 'relocating', 'done', 'failed', 'cancelled'];
      const view = await followRecovery(begun.id, terminal, (state) => settled.includes(state));
      terminal.answer(view, () => finish(view, terminal));
    });
  examples(command, ['rouse resume web01']);
}
