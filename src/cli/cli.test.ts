import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, test } from 'node:test';
import { createApi } from '../api/server.ts';
import { systemClock } from '../lib/clock.ts';
import { systemRandom } from '../lib/random.ts';
import { textWidth } from '../lib/text.ts';
import { stubServices } from '../testing/stub-services.ts';
import { runCommandLine } from './program.ts';
import { ProcessTerminal } from './terminal.ts';

/** The command line as a person runs it: a process, against an API with stub services. */
process.env['TZ'] = 'UTC';
const directory = mkdtempSync(join(tmpdir(), 'rouse-cli-'));
const data = join(directory, 'data');
mkdirSync(join(data, 'run'), { recursive: true });
const socket = join(directory, 'api.sock');
const services = stubServices();
const log = { info: () => undefined, error: () => undefined };
const options = { services, log, random: systemRandom, version: '0.1.0' };
const api = await createApi({ ...options, listen: { socket } });
writeFileSync(join(data, 'run', 'server.json'), JSON.stringify({ socket, pid: process.pid }));
const children = new Set<ChildProcess>();
after(async () => {
  for (const child of children) child.kill('SIGKILL');
  await api.close();
  rmSync(directory, { recursive: true });
});

interface Result {
  readonly exit: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

interface Run {
  readonly data?: string;
  readonly environment?: Readonly<Record<string, string>>;
  /** Sends SIGINT once stdout or stderr holds this. */
  readonly interruptAt?: string;
  /** Calls `call` once stdout holds this. */
  readonly whenAt?: { readonly text: string; readonly call: () => void };
}

/** A process of its own: for signals, and for what the process itself brings. */
function rouseProcess(values: readonly string[], how: Run = {}): Promise<Result> {
  const { NO_COLOR: _, FORCE_COLOR: __, ROUSE_SERVER: ___, ...inherited } = process.env;
  const entry = join(import.meta.dirname, 'main.ts');
  const child = spawn(process.execPath, [entry, ...values], {
    cwd: directory,
    env: { ...inherited, ROUSE_DATA: how.data ?? data, TZ: 'UTC', ...how.environment },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 30_000,
  });
  children.add(child);
  let stdout = '';
  let stderr = '';
  let interrupted = false;
  const look = () => {
    if (how.whenAt !== undefined && stdout.includes(how.whenAt.text)) how.whenAt.call();
    if (how.interruptAt === undefined || interrupted) return;
    if (!(stdout + stderr).includes(how.interruptAt)) return;
    interrupted = true;
    child.kill('SIGINT');
  };
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
    look();
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
    look();
  });
  return new Promise((resolve) => {
    child.once('close', (exit) => {
      children.delete(child);
      resolve({ exit, stdout, stderr });
    });
  });
}

/** The same in this process, which is twenty times as fast. */
async function rouse(values: readonly string[], how: Run = {}): Promise<Result> {
  const text = { stdout: '', stderr: '' };
  const stdout = { write: (part: string) => void (text.stdout += part) };
  const stderr = { write: (part: string) => void (text.stderr += part) };
  const environment = { ROUSE_DATA: how.data ?? data, TERM: 'xterm', ...how.environment };
  const surroundings = { stdout, stderr, stdin: process.stdin, environment };
  const exit = await runCommandLine(values, new ProcessTerminal(systemClock, surroundings));
  return { exit, ...text };
}

async function good(...values: string[]): Promise<string> {
  const { exit, stdout, stderr } = await rouse(values);
  assert.equal(exit, 0, `${values.join(' ')}: ${stderr}`);
  return stdout;
}

/** The two lines of an error: what was wrong, what to do. */
async function bad(exit: number, ...values: string[]): Promise<string> {
  const result = await rouse(values);
  assert.equal(result.stdout, '', values.join(' '));
  assert.equal(result.exit, exit, result.stderr);
  assert.match(result.stderr, /^rouse: .+\n→ .+\n$/, values.join(' '));
  return result.stderr;
}

test('every table fits 80 columns, without colours, when piped', async () => {
  for (const command of [
    ['machines'],
    ['savesets'],
    ['recover', 'web01'],
    ['recoveries', '--all'],
    ['backup', 'web01'],
    ['backups'],
    ['exports'],
    ['events'],
    ['status'],
    ['vault', 'stats'],
    ['vault', 'verify'],
    ['vault', 'mtrees'],
    ['hypervisor', 'list'],
    ['proxy', 'list'],
    ['recover', 'web01', '--dry-run'],
    ['--help'],
    ['recover', '--help'],
  ]) {
    const text = await good(...command);
    for (const line of text.trimEnd().split('\n')) {
      const copied = /^(→|Mount it| {2}rouse)/.test(line);
      assert.ok(copied || textWidth(line) <= 80, `${command.join(' ')}: ${line}`);
    }
    assert.ok(!text.includes('\u001b'), command.join(' '));
  }
});

test('recover waits, shows the steps and what to do next', async () => {
  const text = await good('recover', 'web01', '--power-on', '--lease', '5d', '--host', 'host1');
  assert.match(text, /^web01-recovered: web01 of 2026-11-21 22:00, instant, recovery rec\d+\n/);
  assert.match(text, /\n 6 ✔ Clone +17 ms {2}clone is found\n/);
  assert.match(text, /\nweb01-recovered is available on host1 of lab after 640 ms\.\n/);
  assert.match(text, /→ rouse cancel rec\d+/);
  const [, request] = services.calls.findLast((call) => (call as string[])[0] === 'create') as [
    string,
    Record<string, unknown>,
  ];
  assert.equal(request['powerOn'], true);
  assert.equal(request['leaseMs'], 5 * 86_400_000);
  assert.equal(request['host'], 'host1');
});

test('reconcile says what it did, what it left and why', async () => {
  const dry = await good('reconcile', '--dry-run');
  assert.match(dry, /would mend: machine web01-recovered at lab\n  no recovery .*: unregistered\n/);
  assert.match(dry, /left: clone Recover-local-k3f9x2m7qa at local\n.*: It holds 9 MiB/);
  assert.match(dry, /2 things: 1 would mend, 1 left\.\nA dry run: nothing was changed\./);
  assert.match(dry, /discard them:\s+rouse reconcile\s+--force\n/);
  for (const line of dry.split('\n')) assert.ok(line.length <= 80, line);
  assert.match(await good('reconcile'), /2 things: 1 mended, 1 left\.\n$/);
  assert.deepEqual(services.calls.at(-1), ['reconcile', { dryRun: false, force: false }]);
});

test('publish answers exactly what scripts read', async () => {
  const command = ['recover', 'web01', '--mode', 'publish', '--client', '127.0.0.1', '--json'];
  const answer = JSON.parse(await good(...command));
  assert.match(answer.recovery, /^rec\d+$/);
  assert.deepEqual(answer, {
    recovery: answer.recovery,
    export: { path: `/main/Recover-local-${answer.recovery}`, nfsPort: 2049, mountPort: 2050 },
    disks: [
      { path: 'web01/vda-flat.vmdk', sizeBytes: 32_212_254_720 },
      { path: 'web01/vdb-flat.vmdk', sizeBytes: 10_737_418_240 },
    ],
  });
});

test('a time as people write it chooses the saveset', async () => {
  const command = ['recover', 'web01', '--at', '2026-11-21 12:00', '--dry-run', '--json'];
  assert.equal(JSON.parse(await good(...command)).saveset.id, 'h3kd9xw2pf');
  await good('recover', '--saveset', 'qy7m', '--no-wait');
  await good('recover', 'web01', '--at', 'in 200 years', '--no-wait');
  const early = await bad(3, 'recover', 'web01', '--at', '3 May 1999 10:00');
  assert.match(
    early,
    /web01 has no saveset taken before that time\n→ List them: rouse savesets web01/,
  );
});

test('a recovery that fails gives its error and its exit code', async () => {
  const { exit, stdout, stderr } = await rouse(['recover', 'broken01']);
  assert.equal(exit, 11);
  assert.match(stdout, / 8 ✖ Datastore/);
  assert.match(stderr, /^rouse: recovery rec\d+ of broken01 failed: host1 cannot mount the/);
  assert.match(stderr, /\n→ Open port 2049 on the proxy\.\n$/);
  const json = await rouse(['recover', 'broken01', '--json']);
  assert.equal(json.stdout, '');
  assert.equal(JSON.parse(json.stderr).code, 'hypervisor-error');
});

test('Ctrl-C stops watching; the recovery goes on', async () => {
  const result = await rouseProcess(['recover', 'slow01'], { interruptAt: ' 5 ✔' });
  assert.equal(result.exit, 130);
  assert.match(result.stderr, /Stopped watching\. Recovery rec\d+ goes on\./);
  const id = /rec\d+/.exec(result.stderr)?.[0] ?? '';
  assert.match(result.stderr, new RegExp(`→ rouse cancel ${id}`));
  assert.equal((await services.recoveries.get(id)).state, 'starting');
  assert.match(await good('show', id), /State +starting/);
  assert.match(await good('cancel', id), /is cancelled, and nothing of it is left/);
});

test('a watcher waits for a server that is restarted', async () => {
  const where = join(directory, 'restarted.sock');
  const first = await createApi({ ...options, listen: { socket: where } });
  const { id } = JSON.parse(await good('recover', 'slow01', '--no-wait', '--json'));
  const environment = { ROUSE_SERVER: `unix:${where}` };
  let watching: Promise<Result> | undefined;
  await new Promise<void>((resolve) => {
    const whenAt = { text: ' 5 ✔', call: resolve };
    watching = rouseProcess(['watch', id], { environment, whenAt });
  });
  await first.close();
  const second = await createApi({ ...options, listen: { socket: where } });
  await services.recoveries.cancel(id, { keepWrites: false });
  const result = (await watching) ?? assert.fail();
  await second.close();
  assert.equal(result.exit, 0, result.stderr);
  assert.match(
    result.stderr,
    /^The server went away; waiting for it\. .*\nThe server is back\.\n$/,
  );
  assert.match(result.stdout, /is cancelled, and nothing of it is left/);
  assert.equal(result.stdout.match(/ 5 ✔/g)?.length, 1);
});

test('Ctrl-C cancels a backup that nobody can be asked about', async () => {
  const result = await rouseProcess(['backup', 'slow01'], { interruptAt: '2 GiB of 4 GiB' });
  assert.equal(result.exit, 6);
  assert.match(
    result.stderr,
    /^Cancelling the backup of slow01\.\nrouse: the backup of slow01 was/,
  );
  assert.deepEqual((services.calls.at(-1) as string[])[0], 'cancel backup');
});

test('a backup of files sends absolute paths', async () => {
  await good('backup', '--file', 'a.qcow2', '--file', '/b.raw', '--config', 'web.xml');
  assert.deepEqual(services.calls.at(-1), [
    'backup',
    {
      kind: 'files',
      files: {
        name: 'a',
        disks: [{ path: resolve('a.qcow2') }, { path: '/b.raw' }],
        configuration: resolve('web.xml'),
      },
      mtree: undefined,
      proxy: undefined,
    },
  ]);
  const failed = await rouse(['backup', '--file', 'x.raw', '--name', 'broken01']);
  assert.equal(failed.exit, 9);
  assert.match(failed.stderr, /^rouse: the backup of broken01 failed: vda vanished while it was/);
});

test('what is done with a recovery afterwards', async () => {
  const { id } = JSON.parse(await good('recover', 'web01', '--name', 'copy', '--json'));
  assert.match(await good('renew', id, '--lease', '12h'), /^The lease of copy ends /);
  assert.match(await good('seal', 'copy'), /^Sealed into saveset sealed0001 \(2 GiB new\)/);
  assert.match(await good('recover', 'seal', 'copy'), /^Sealed into saveset sealed0001/);
  const picture = join(directory, 'screen.png');
  assert.match(await good('show', id, '--picture', picture), /Clone +\/main\/Recover-local/);
  assert.equal(readFileSync(picture).length, 4);
  assert.match(await good('cancel', id, '--keep-writes'), /copy is parked/);
  assert.match(await good('resume', id), /copy is available/);
  const stays = await rouse(['relocate', id, '--to', 'full']);
  assert.equal(stays.exit, 8);
  assert.match(
    stays.stderr,
    /copy was not moved to full and runs on .*: full is full\n→ Free some/,
  );
  assert.match(
    await good('show', id),
    /\n! It was not moved to full: full is full\. Free some\.\n/,
  );
  const relocate = ['relocate', id, '--to', 'prod', '--bandwidth', '50M'];
  assert.match(await good(...relocate), /copy is done; nothing of it is left/);
  const [, , request] = services.calls.at(-1) as unknown[];
  assert.deepEqual(request, { datastore: 'prod', bandwidthBytesPerSecond: 50 * 1024 * 1024 });
  const lines = (await good('watch', id, '--json')).trim().split('\n');
  assert.equal(JSON.parse(lines.at(-1) ?? '').state, 'done');
});

test('every JSON answer is one value on one line', async () => {
  for (const [command, key] of [
    ['machines', 'machines'],
    ['savesets', 'savesets'],
    ['recoveries', 'recoveries'],
    ['backups', 'backups'],
    ['exports', 'exports'],
    ['events', 'events'],
    ['hypervisor list', 'hypervisors'],
    ['status', 'server'],
    ['vault stats', 'blockBytes'],
    ['vault verify', 'savesets'],
    ['vault rescan', 'packs'],
  ] as const) {
    const text = await good(...command.split(' '), '--json');
    assert.equal(text.trimEnd().split('\n').length, 1, command);
    assert.ok(key in JSON.parse(text), command);
  }
});

test('a damaged vault is a failure of verify and rescan', async () => {
  services.vaultIsBad = true;
  const verify = await rouse(['vault', 'verify']);
  const rescan = await rouse(['vault', 'rescan', '--json']);
  services.vaultIsBad = false;
  assert.equal(verify.exit, 7);
  assert.match(verify.stdout, /qy7m2c5n8k +web01 +9 +288 KiB +damaged/);
  assert.match(verify.stdout, /! qy7m2c5n8k: vda: 32768 bytes at 65536 do not match their hash/);
  assert.match(verify.stderr, /^rouse: 1 saveset is damaged\n→ Back up these machines again/);
  assert.equal(rescan.exit, 7);
  assert.equal(JSON.parse(rescan.stderr).code, 'corrupt-data');
});

test('a vault is made once, and with a size that it can have', async () => {
  const vault = join(directory, 'a vault');
  const made = JSON.parse(await good('vault', 'create', vault, '--block-size', '16K', '--json'));
  assert.deepEqual(made, { id: made.id, path: vault, blockBytes: 16_384 });
  assert.match(await bad(5, 'vault', 'create', vault), /a vault holds a vault already\n→ Use it/);
  const other = join(directory, 'other');
  assert.match(
    await bad(2, 'vault', 'create', other, '--block-size', '20K'),
    /a block size of 20480 bytes cannot be used\n→ Give a power of two from 4 KiB to 1 MiB\./,
  );
  assert.equal(existsSync(other), false);
});

test('hypervisors are added, tested and removed', async () => {
  const add = ['hypervisor', 'add', 'far', 'qemu+ssh://root@far/system'];
  await good(...add, '--datastore', 'prod=/srv/prod');
  assert.match(await good('hypervisor', 'test', 'lab'), /^lab is usable[^]*KVM is not usable/);
  const failed = await rouse(['hypervisor', 'test', 'far']);
  assert.equal(failed.exit, 11);
  await good('hypervisor', 'remove', 'far');
  assert.match(
    await bad(2, ...add, '--datastore', 'prod'),
    /--datastore "prod" is not NAME=PATH\n→ Give a name and an absolute path/,
  );
});

test('what is wrong is read aloud', async () => {
  assert.equal(
    await bad(3, 'recover', 'wbe01'),
    'rouse: no machine is called "wbe01"\n→ Did you mean web01?\n',
  );
  assert.match(
    await bad(2, 'recover', 'web01', '--at', 'the day of the crash'),
    /^rouse: --at "the day of the crash" is not a time\n→ Write it as "yesterday 22:00"/,
  );
  assert.match(
    await bad(2, 'recover', 'web01', '--lease', '-2d'),
    /^rouse: --lease "-2d" is in the past\n→ Write how long from now/,
  );
  assert.match(await bad(2, 'renew', 'x', '--lease', 'yesterday'), /is in the past/);
  assert.match(await bad(2, 'recover', 'web01', '--lease', '0s'), /"0s" is in the past/);
  assert.match(
    await bad(2, 'recover', 'web01', '--lease', 'a while'),
    /neither a duration nor a time/,
  );
  assert.match(await bad(2, 'recover', 'web01', '--lease', '400d'), /is longer than 365 days/);
  assert.match(
    await bad(2, 'recover', 'web01', '--mode', 'publish'),
    /--mode publish needs --client: who may mount it\?\n→ Name the address/,
  );
  assert.match(await bad(2, 'recover'), /recover needs a machine, or --saveset ID\n→ List the/);
  assert.match(await bad(2, 'recover', 'web01', '--relocate-at', 'noon'), /needs --relocate-to/);
  assert.match(
    await bad(2, 'relocate', 'web01', '--to', 'p', '--at', '2020-01-01 10:00'),
    /--at "2020-01-01 10:00" is in the past \(2020-01-01 10:00\)/,
  );
  assert.match(
    await bad(2, 'recover', 'web01', '--mode', 'publish', '--client', 'localhost'),
    /^rouse: --client "localhost" must be an IPv4 or IPv6 address/,
  );
  assert.match(
    await bad(2, 'backup'),
    /backup needs a machine, or --file DISK\n→ List the machines/,
  );
  assert.match(
    await bad(2, 'backup', 'web01', '--file', 'x'),
    /both the machine "web01" and --file/,
  );
  assert.match(await bad(2, 'backup', 'web01', '--name', 'x'), /--name is for a backup of files/);
  assert.match(await bad(5, 'resume', await aRecovery()), /is not parked/);
});

async function aRecovery(): Promise<string> {
  return JSON.parse(await good('recover', 'web01', '--no-wait', '--json')).id;
}

test('commands and options that do not exist, or miss something', async () => {
  assert.equal(
    await bad(2, 'recovr', 'web01'),
    'rouse: there is no command "recovr"\n→ Did you mean recover?\n',
  );
  assert.match(await bad(2, 'vault', 'verfy'), /no command "verfy"\n→ Did you mean verify\?/);
  assert.match(
    await bad(2, 'recover', 'web01', '--hots', 'x'),
    /'--hots'\n→ Did you mean --host\?/,
  );
  assert.match(
    await bad(2, 'recover', 'web01', '--mode', 'flr'),
    /--mode flr needs --into: which running machine\?\n→ Name the machine/,
  );
  assert.match(
    await bad(2, 'recover', 'web01', '--disks', 'vda,vdb'),
    /is for mode flr; instant takes all/,
  );
  assert.match(
    await bad(2, 'recover', 'web01', '--mode', 'instnt'),
    /'--mode <mode>' argument 'instnt' is invalid.*\n→ See rouse recover --help\./,
  );
  assert.match(await bad(2, 'renew', 'x'), /'--lease <duration>' not specified\n→ See rouse renew/);
  assert.match(
    await bad(2, 'show'),
    /missing required argument 'recovery'\n→ See rouse show --help/,
  );
  assert.match(await bad(2, 'vault'), /rouse vault needs a command\n→ See rouse vault --help\./);
  assert.match(await bad(2, 'up', '--nfs-port', 'x'), /--nfs-port "x" is not a port/);
  assert.match(await bad(2, 'up', '--cache', 'lots'), /"lots" is not a size/);
  const json = await rouse(['recovr', '--json']);
  assert.equal(JSON.parse(json.stderr).code, 'bad-request');
});

test('no server runs', async () => {
  const nowhere = join(directory, 'no where');
  const result = await rouseProcess(['machines'], { data: nowhere });
  assert.equal(result.exit, 12);
  assert.equal(
    result.stderr,
    `rouse: no server runs on ${nowhere}\n→ Start it: rouse up --data '${nowhere}'\n`,
  );
  const there = join(directory, 'plain');
  const dataOption = await rouse(['machines', '--data', there]);
  assert.match(dataOption.stderr, new RegExp(`no server runs on ${there}\n→ Start it: rouse up`));
  const elsewhere = await rouse(['machines', '--server', 'http://127.0.0.1:1']);
  assert.equal(elsewhere.exit, 12);
  const wrong = await rouse(['machines', '--server', 'ftp://x']);
  assert.match(wrong.stderr, /"ftp:\/\/x" is not the address of a server/);
  const named = await rouse(['machines', '--server', `unix:${socket}`], { data: nowhere });
  assert.equal(named.exit, 0);
});

test('help of every command has an example', async () => {
  const top = await good();
  assert.match(top, /Usage: rouse/);
  for (const command of [
    'up status machines savesets exports events backup backups recover recoveries show watch',
    'relocate renew cancel resume seal completion',
  ].flatMap((line) => line.split(' '))) {
    const text = await good(command, '--help');
    assert.match(text, /\nExamples?:\n {2}\S+.*rouse|\nExamples?:\n {2}rouse /, command);
    assert.match(text, /--json/, command);
  }
  for (const command of ['list', 'show', 'drain', 'set', 'remove', 'token', 'enrol']) {
    assert.match(await good('proxy', command, '--help'), /\nExamples?:\n {2}rouse proxy /);
  }
  for (const command of ['create', 'stats', 'verify', 'rescan', 'mtrees', 'add-mtree']) {
    assert.match(await good('vault', command, '--help'), /\nExamples?:\n {2}rouse vault /);
  }
});

test('the guide tells of every command', async () => {
  const path = join(import.meta.dirname, '../../docs/guide/command-line.md');
  const guide = readFileSync(path, 'utf8');
  const script = await good('completion', 'fish');
  const commands = [...script.matchAll(/-n '(.*)' -a ([a-z-]+) /g)].map((match) => {
    const parent = /^__fish_seen_subcommand_from ([a-z]+)$/.exec(match[1] ?? '')?.[1];
    return parent === undefined ? match[2] : `${parent} ${match[2]}`;
  });
  assert.ok(commands.length > 25, String(commands.length));
  const several = guide.replaceAll(/rouse hypervisor add\|list\|test\|remove/g, '');
  for (const command of commands) {
    if (command === 'help' || command === 'vault' || command?.endsWith(' help')) continue;
    assert.ok(several.includes(`rouse ${command}`), command);
  }
});

test('proxies: listed with what is wrong, shown, drained, changed, removed', async () => {
  const list = await good('proxy', 'list');
  assert.match(list, /^NAME +STATE +ADDRESS/);
  assert.match(list, /refused/);
  assert.match(list, /! a-proxy-with-a-long-name-in-paris: it speaks version 2,/);
  const name = 'a-proxy-with-a-long-name-in-paris';
  assert.match(await good('proxy', 'show', name), /Its clock is 1 min 30 s ahead of the server's/);
  assert.match(await good('proxy', 'drain', 'local'), /local is draining; 0 recoveries/);
  assert.match(await good('proxy', 'drain', 'local', '--undo'), /local takes work again/);
  const changed = await good('proxy', 'set', 'local', '--label', 'site=x', '--only', 'A');
  assert.match(changed, /Labels +site=x\nOnly for +A/);
  assert.match(await bad(2, 'proxy', 'set', 'local'), /needs something to change/);
  assert.match(await bad(2, 'proxy', 'set', 'local', '--label', 'x'), /"x" is not a label/);
  assert.match(await bad(3, 'proxy', 'show', 'locl'), /Did you mean local/);
  assert.match(await good('proxy', 'remove', name), /is removed/);
  const token = await good('proxy', 'token', '--name', 'edge1', '--expires', '10min');
  assert.match(
    token,
    /→ rouse proxy enrol --server https:\/\/192.0.2.1:9443 --name edge1 --token r/,
  );
  assert.match(await bad(2, 'proxy', 'token', '--expires', 'soon'), /"soon" is not a duration/);
  assert.match(await bad(2, 'proxy', 'enrol', '--token', 'x'), /needs --server: which one/);
  const join = ['proxy', 'enrol', '--server', 'https://127.0.0.1:1', '--token', 'rouse-x'];
  assert.match(await bad(2, ...join), /the token is not whole, or was mistyped/);
  assert.match(await bad(2, ...join, '--call-port', 'x'), /--call-port "x" is not a port/);
  assert.match(await bad(2, ...join, '--address', 'x'), /--address "x" is not an IP address/);
});

test('completion scripts name the commands, and bash accepts its own', async () => {
  const script = await good('completion', 'bash');
  assert.match(script, /'vault'\) words='create stats verify rescan/);
  const file = join(directory, 'completion.bash');
  const ask = `COMP_WORDS=(rouse vault ver); COMP_CWORD=2; _rouse; echo "\${COMPREPLY[@]}"`;
  const more = `COMP_WORDS=(rouse recover --json web01 --mo); COMP_CWORD=4; _rouse; echo "\${COMPREPLY[@]}"`;
  writeFileSync(file, `${script}\n${ask}\n${more}\n`);
  const answer = spawnSync('bash', [file], { encoding: 'utf8', timeout: 10_000 });
  assert.equal(answer.stderr, '');
  assert.equal(answer.stdout, 'verify\n--mode\n');
  assert.match(await good('completion', 'zsh'), /bashcompinit/);
  assert.match(
    await good('completion', 'fish'),
    /complete -c rouse -n '__fish_seen_subcommand_from/,
  );
});
