import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { errorTable, type ErrorCode, isRouseError, RouseError } from '../errors.ts';
import { type Commands, examples, follow, Interrupted, type Terminal } from '../lib/terminal.ts';
import { fitText, formatBytes, parseBytes, plural, printable, shellWord } from '../lib/text.ts';
import { formatTime } from '../lib/times.ts';
import { vaultLimits } from '../limits.ts';
import type { Mtree, RescanReport, VaultStats, VerifyReport } from '../vault/api.ts';
import type { VaultJob } from './schema.ts';

/** `rouse vault create|stats|verify|rescan|mtrees|add-mtree`. All but `create` ask the server. */
export const vaultCommands: Commands = (program, terminal) => {
  const vault = program.command('vault').description('look after the vault; see vault --help');
  addCreate(vault, terminal);
  addStats(vault, terminal);
  addVerify(vault, terminal);
  addRescan(vault, terminal);
  addMtrees(vault, terminal);
};

function addCreate(vault: Command, terminal: Terminal): void {
  const command = vault
    .command('create')
    .description('make an empty vault in a directory, before rouse up first uses it')
    .argument('[dir]', 'the directory (default: DIR/vault of --data)')
    .option('--block-size <size>', 'a power of two from 4K to 1M (default: 32K)')
    .action(async (given: string | undefined, options: { readonly blockSize?: string }) => {
      const directory = resolve(given ?? join(terminal.dataDirectory, 'vault'));
      const { blockSize } = options;
      const made = await createIn(
        directory,
        blockSize === undefined ? undefined : parseBytes(blockSize),
      );
      terminal.answer(made, () => {
        const blocks = `blocks of ${formatBytes(made.blockBytes)}`;
        terminal.print(`An empty vault is made in ${printable(directory)} (${blocks}).`);
        if (given !== undefined) {
          terminal.print(`→ rouse up --vault ${shellWord(given)}   uses it`);
        }
      });
    });
  examples(command, ['rouse vault create', 'rouse vault create /srv/vault --block-size 16K']);
}

async function createIn(directory: string, asked: number | undefined) {
  const { openDirectoryStore } = await import('../blobs/directory-store.ts');
  const { nodeFiles } = await import('../lib/node-files.ts');
  const { systemRandom: random } = await import('../lib/random.ts');
  const { createVault } = await import('../vault/vault.ts');
  const blockBytes = asked ?? vaultLimits.blockBytesDefault;
  const least = vaultLimits.blockBytesMin;
  const most = vaultLimits.blockBytesMax;
  // Looked at first, so that a wrong size does not leave a directory behind.
  if (blockBytes < least || blockBytes > most || !Number.isInteger(Math.log2(blockBytes))) {
    throw new RouseError('bad-request', `a block size of ${blockBytes} bytes cannot be used`, {
      advice: `Give a power of two from ${formatBytes(least)} to ${formatBytes(most)}.`,
    });
  }
  const store = await openDirectoryStore({ files: nodeFiles, directory, random });
  const id = await createVault(store, { random, blockBytes }).catch((error: unknown) => {
    if (!isRouseError(error, 'already-exists')) throw error;
    throw new RouseError('already-exists', `${directory} holds a vault already`, {
      advice: `Use it: rouse up --vault ${shellWord(directory)}`,
    });
  });
  return { id, path: directory, blockBytes };
}

function addStats(vault: Command, terminal: Terminal): void {
  const command = vault
    .command('stats')
    .description('show logical, unique and stored size, and the ratios between them')
    .action(async () => {
      const client = await terminal.client();
      const stats = (await client.get('/v1/vault')) as VaultStats;
      terminal.answer(stats, () => printStats(stats, terminal));
    });
  examples(command, ['rouse vault stats']);
}

function printStats(stats: VaultStats, terminal: Terminal): void {
  const fact = (name: string, value: string) => terminal.print(`${name.padEnd(14)}${value}`);
  const percent = (part: number, whole: number) =>
    whole === 0 ? '' : ` (${Math.round((100 * part) / whole)}%)`;
  fact('Savesets', `${stats.savesets} of ${plural(stats.machines, 'machine')}`);
  fact('Logical', formatBytes(stats.logicalBytes));
  fact('Not zero', formatBytes(stats.referencedBytes));
  fact('Unique', formatBytes(stats.uniqueBytes));
  fact('Stored', `${formatBytes(stats.storedBytes)} in ${plural(stats.packs, 'pack')}`);
  fact('Dedup', `${stats.dedupRatio.toFixed(2)}x`);
  fact('Compression', `${stats.compressionRatio.toFixed(2)}x`);
  fact('Blocks', `${stats.indexEntries} of ${formatBytes(stats.blockBytes)}`);
  fact('Index', `${formatBytes(stats.indexMemoryBytes)} of memory`);
  const { boundBytes, hits, misses, usedBytes } = stats.cache;
  fact('Cache', `${formatBytes(usedBytes)} of ${formatBytes(boundBytes)}`);
  fact('Cache hits', `${hits}${percent(hits, hits + misses)}`);
  fact('Format', `version ${stats.formatVersion}`);
}

function addVerify(vault: Command, terminal: Terminal): void {
  const command = vault
    .command('verify')
    .description('read and hash again all that savesets need; fails when something is bad')
    .argument('[saveset]', 'this saveset alone')
    .action(async (saveset: string | undefined) => {
      const request = saveset === undefined ? {} : { saveset };
      const job = await runJob('/v1/vault/verify', request, 'verified', terminal);
      const report = job.verify ?? { ok: false, savesets: [] };
      terminal.answer(report, () => printVerified(report, terminal));
      if (report.ok) return;
      const bad = report.savesets.filter((entry) => !entry.ok);
      const what = bad.length === 1 ? '1 saveset is' : `${bad.length} savesets are`;
      throw new RouseError('corrupt-data', `${what} damaged`, {
        advice: 'Back up these machines again; older savesets of them may be whole.',
        details: { savesets: bad.map((entry) => entry.id) },
      });
    });
  examples(command, ['rouse vault verify', 'rouse vault verify qy7m2c5n8k']);
}

function printVerified(report: VerifyReport, terminal: Terminal): void {
  terminal.table(
    [
      { title: 'saveset', minWidth: 10 },
      { title: 'machine', flexible: true, minWidth: 8 },
      { title: 'blocks', align: 'right', minWidth: 8 },
      { title: 'bytes', align: 'right', minWidth: 8 },
      { title: 'state', minWidth: 7 },
    ],
    report.savesets.map((entry) => [
      entry.id,
      entry.machine,
      String(entry.blocks),
      formatBytes(entry.bytes),
      entry.ok ? 'whole' : 'damaged',
    ]),
    'The vault holds no saveset.',
  );
  for (const entry of report.savesets) {
    for (const problem of entry.problems) {
      terminal.print(terminal.paint('red', `! ${entry.id}: ${printable(problem)}`));
    }
  }
}

function addRescan(vault: Command, terminal: Terminal): void {
  const command = vault
    .command('rescan')
    .description('rebuild index and catalog from the packs alone')
    .action(async () => {
      const job = await runJob('/v1/vault/rescan', {}, 'scanned', terminal);
      const none: RescanReport = { packs: 0, blocks: 0, savesets: 0, problems: [] };
      const report = job.rescan ?? none;
      terminal.answer(report, () => {
        const { packs, blocks, savesets } = report;
        terminal.print(
          `Found ${plural(savesets, 'saveset')}: ${plural(blocks, 'block')} in ${plural(packs, 'pack')}.`,
        );
        for (const problem of report.problems) {
          terminal.print(terminal.paint('red', `! ${printable(problem)}`));
        }
      });
      if (report.problems.length === 0) return;
      throw new RouseError(
        'corrupt-data',
        `the rescan met ${plural(report.problems.length, 'problem')}`,
        {
          advice: 'See which savesets they hurt: rouse vault verify',
        },
      );
    });
  examples(command, ['rouse vault rescan']);
}

/** Starts a job and shows its progress; Ctrl-C cancels it. */
async function runJob(
  path: string,
  request: object,
  done: string,
  terminal: Terminal,
): Promise<VaultJob> {
  const client = await terminal.client();
  let job = (await client.post(path, request)) as VaultJob;
  const where = `/v1/vault/jobs/${job.id}`;
  const controller = new AbortController();
  const stopListening = terminal.onInterrupt(() => {
    void client
      .post(`${where}/cancel`)
      .catch(() => undefined)
      .finally(() => controller.abort());
  });
  const live = terminal.interactive && !terminal.json ? terminal.live() : undefined;
  try {
    for await (const view of follow<VaultJob>(terminal, `${where}/events`, controller.signal)) {
      job = view;
      const share = view.totalBytes > 0 ? Math.floor((100 * view.doneBytes) / view.totalBytes) : 0;
      const amount = `${formatBytes(view.doneBytes)} of ${formatBytes(view.totalBytes)}`;
      live?.show([fitText(`${share}% ${done}, ${amount}`, terminal.width - 1)]);
    }
  } finally {
    live?.end();
    stopListening();
  }
  if (controller.signal.aborted) {
    terminal.note('Cancelled; nothing was changed.');
    throw new Interrupted();
  }
  if (job.state === 'done') return job;
  const { code = 'cancelled', message = 'it was cancelled', advice } = job.error ?? {};
  const known: ErrorCode = code in errorTable ? (code as ErrorCode) : 'internal';
  throw new RouseError(known, message, advice === undefined ? {} : { advice });
}

function addMtrees(vault: Command, terminal: Terminal): void {
  const list = vault
    .command('mtrees')
    .description('list the named parts of the vault')
    .action(async () => {
      const client = await terminal.client();
      const answer = (await client.get('/v1/mtrees')) as { readonly mtrees: readonly Mtree[] };
      terminal.answer(answer, () =>
        terminal.table(
          [{ title: 'name', flexible: true }, { title: 'codec' }, { title: 'created' }],
          answer.mtrees.map((entry) => [entry.name, entry.codec, formatTime(entry.createdMs)]),
          'The vault has no part yet.',
        ),
      );
    });
  examples(list, ['rouse vault mtrees']);
  const codec = vault
    .createOption('--codec <codec>', 'lz4: fast to serve; zstd: smaller')
    .choices(['lz4', 'zstd'])
    .default('lz4');
  const add = vault
    .command('add-mtree')
    .description('make a new part of the vault')
    .argument('<name>', 'what to call it')
    .addOption(codec)
    .action(async (name: string, options: { readonly codec: string }) => {
      const client = await terminal.client();
      const made = (await client.post('/v1/mtrees', { name, codec: options.codec })) as Mtree;
      terminal.answer(made, () => terminal.print(`The part ${printable(made.name)} is made.`));
    });
  examples(add, ['rouse vault add-mtree archive --codec zstd']);
}
