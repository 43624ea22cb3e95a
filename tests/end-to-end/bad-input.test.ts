/** What goes wrong at the command line is said in words, with what to do, and changes nothing. */
import assert from 'node:assert/strict';
import { mkdir, open, readdir, truncate, writeFile } from 'node:fs/promises';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { createServer } from 'node:net';
import { after, test } from 'node:test';
import { attempt, run } from '#lab/processes.ts';
import { RouseCommand } from '#lab/rouse-command.ts';
import { enterWorld } from '#lab/world.ts';

const world = await enterWorld({ guests: false });
await mkdir(world.directory, { recursive: true });
const at = (name: string) => join(world.directory, name);
const rouse = new RouseCommand(world, at('data'));
await rouse.up();
after(async () => {
  await rouse.stop();
  await world.end();
});

/** The command fails with that exit code, says so, says what to do, and shows no stack. */
async function refused(exitCode: number, says: RegExp, ...values: string[]): Promise<void> {
  const { code, stdout, stderr } = await rouse.attempt(...values);
  const all = `rouse ${values.join(' ')}\n${stdout}${stderr}`;
  assert.equal(code, exitCode, all);
  assert.match(stderr, says, all);
  assert.match(stderr, /→ \S/, all);
  assert.doesNotMatch(stderr, /\n\s+at |node:internal/, all);
}

const backup = (file: string, ...more: string[]) => [
  'backup',
  '--file',
  at(file),
  '--name',
  'bad',
  ...more,
];

test('disk images that are empty, cut off, damaged or missing', async () => {
  await writeFile(at('empty.raw'), '');
  await refused(2, /empty\.raw.*(0 bytes|empty)/, ...backup('empty.raw'));
  await refused(3, /missing\.raw.*no such file/i, ...backup('missing.raw'));

  await run('qemu-img', ['create', '-f', 'qcow2', at('base.qcow2'), '8M']);
  await run('qemu-io', ['-c', 'write -P 1 0 4M', at('base.qcow2')]);
  await run('qemu-img', [
    ...['create', '-f', 'qcow2', '-F', 'qcow2', '-b', at('base.qcow2'), at('top.qcow2')],
  ]);
  await run('cp', [at('base.qcow2'), at('cut.qcow2')]);
  await truncate(at('cut.qcow2'), 300_000);
  await refused(7, /cut\.qcow2/, ...backup('cut.qcow2'));
  await run('mv', [at('base.qcow2'), at('moved.qcow2')]);
  await refused(3, /top\.qcow2.*base\.qcow2|base\.qcow2.*top\.qcow2/s, ...backup('top.qcow2'));

  await run('qemu-img', [
    ...['convert', '-f', 'qcow2', '-O', 'vmdk', '-o', 'subformat=streamOptimized'],
    ...[at('moved.qcow2'), at('cut.vmdk')],
  ]);
  await truncate(at('cut.vmdk'), 66_000);
  await refused(7, /cut\.vmdk/, ...backup('cut.vmdk'));
  await writeFile(
    at('noise.qcow2'),
    Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), randomBytes(4096)]),
  );
  await refused(7, /noise\.qcow2/, ...backup('noise.qcow2'));
  assert.deepEqual(await rouse.json('savesets'), { savesets: [] });
});

test('a disk of odd size is backed up whole', async () => {
  await writeFile(at('odd.raw'), randomBytes(100_001));
  await rouse.run('backup', '--file', at('odd.raw'), '--name', 'odd');
  const { savesets } = await rouse.json<{ savesets: { logicalBytes: number }[] }>(
    'savesets',
    'odd',
  );
  assert.equal(savesets[0]?.logicalBytes, Math.ceil(100_001 / 512) * 512);
});

test('names, times and leases that cannot be meant', async () => {
  await refused(3, /"od".*|no machine/, 'recover', 'odx');
  await refused(
    2,
    /lease/i,
    'recover',
    'odd',
    '--mode',
    'publish',
    '--client',
    '127.0.0.1',
    '--lease',
    '-5d',
  );
  await refused(2, /client/i, 'recover', 'odd', '--mode', 'publish', '--client', 'nobody');
  await refused(
    3,
    /.*/,
    'recover',
    'odd',
    '--mode',
    'publish',
    '--client',
    '127.0.0.1',
    '--at',
    '2001-01-01',
  );
  await refused(3, /hypervisor/, 'recover', 'odd', '--power-on');
  await refused(11, /.*/, 'hypervisor', 'add', 'down', 'qemu+unix:///system?socket=/nowhere/sock');
  await refused(3, /nosuch/, 'cancel', 'nosuch');
});

test('a second rouse up on the same data is refused, and the first goes on', async () => {
  const second = new RouseCommand(world, rouse.data);
  const { code, stderr } = await second.attempt('up', '--data', rouse.data, '--nfs-port', '0');
  assert.equal(code, 5, stderr);
  assert.match(stderr, /in use by process \d+/);
  await rouse.run('status');
});

test('a port that is taken is named', async () => {
  const holder = createServer();
  await new Promise<void>((resolve) => holder.listen(0, '127.0.0.1', resolve));
  const address = holder.address();
  const port = typeof address === 'object' && address !== null ? String(address.port) : '0';
  const other = new RouseCommand(world, at('other'));
  const { code, stderr } = await other.attempt(
    ...['up', '--data', at('other'), '--nfs-port', port, '--portmap', 'off'],
    ...['--listen', '127.0.0.1'],
  );
  holder.close();
  assert.equal(code, 10, stderr);
  assert.match(stderr, new RegExp(port));
});

test('damage in the vault is found, named, and never served', async () => {
  await writeFile(at('good.raw'), randomBytes(1 << 20));
  await rouse.run('backup', '--file', at('good.raw'), '--name', 'good');
  await rouse.stop();
  const vault = at('data/vault');
  const names = await readdir(vault, { recursive: true, withFileTypes: true });
  const packs = names.filter((entry) => entry.isFile() && !entry.name.endsWith('.json'));
  for (const pack of packs) {
    const file = await open(join(pack.parentPath, pack.name), 'r+');
    const { size } = await file.stat();
    if (size > 500_000) await file.write(Buffer.alloc(64, 0xee), 0, 64, 500_000);
    await file.close();
  }
  await rouse.up();
  const { code, stdout, stderr } = await rouse.attempt('vault', 'verify');
  assert.notEqual(code, 0, 'damage is not whole');
  assert.match(stdout + stderr, /good/);
  const published = await rouse.json<Published>(
    ...['recover', 'good', '--mode', 'publish', '--client', '127.0.0.1'],
  );
  const { path, nfsPort, mountPort } = published.export;
  const url = `nfs://127.0.0.1${path}/${published.disks[0]?.path}?version=3&nfsport=${nfsPort}&mountport=${mountPort}`;
  const read = await attempt('nfs-cp', [url, at('never.raw')]);
  assert.notEqual(read.code, 0, 'a wrong byte was served');
  await rouse.run('cancel', published.recovery);
});

test('a full disk stops a backup with a word, and the next one works once there is room', async () => {
  const small = at('small');
  await mkdir(small);
  await run('mount', ['-t', 'tmpfs', '-o', 'size=48m', 'tmpfs', small]);
  const tight = new RouseCommand(world, join(small, 'data'), false, [
    ...['--nfs-port', '0', '--portmap', 'off'],
  ]);
  await tight.up();
  await writeFile(at('big.raw'), randomBytes(80 << 20));
  const { code, stderr } = await tight.attempt('backup', '--file', at('big.raw'), '--name', 'big');
  assert.equal(code, 8, stderr);
  assert.match(stderr, /space/);
  assert.match(stderr, /→ \S/);
  assert.deepEqual(await tight.json('savesets'), { savesets: [] });
  await run('mount', ['-o', 'remount,size=200m', small]);
  await tight.run('backup', '--file', at('big.raw'), '--name', 'big');
  await tight.run('vault', 'verify');
  await tight.stop();
  await run('umount', [small]);
});

interface Published {
  readonly recovery: string;
  readonly export: { readonly path: string; readonly nfsPort: number; readonly mountPort: number };
  readonly disks: readonly { readonly path: string }[];
}
