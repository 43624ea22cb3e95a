import { readdir, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from '../lab/processes.ts';

/**
 * An ext4 disk with the files of real packages: programs, libraries and texts of this machine, up
 * to three quarters of its size. `editImage` then changes it in place, as a day's work would.
 */
export async function makeImage(image: string, sizeBytes: number, folder: string): Promise<void> {
  const staged = join(folder, 'staged');
  const wanted = Math.floor(sizeBytes * 0.75);
  const lists = await Promise.all(['/usr/bin', '/usr/lib', '/usr/share'].map(filesBelow));
  const chosen = choose(lists, wanted);
  const list = join(folder, 'staged.list');
  await writeFile(list, chosen.map((file) => `${file}\0`).join(''));
  await run('mkdir', ['-p', staged]);
  const copy = `xargs -0 cp --parents --no-dereference --target-directory="$0" <"$1"`;
  await run('sh', ['-c', copy, staged, list], { timeoutMs: 600_000 });
  await writeFile(image, '');
  await truncate(image, sizeBytes);
  // The same image on every run of the same machine: fixed id, fixed hash seed.
  const id = '6d0a3f5e-7c1b-4e8a-9b55-2f1f6a2b7c01';
  const fixed = ['-U', id, '-E', `hash_seed=${id}`];
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', ...fixed, '-d', staged, image], {
    timeoutMs: 600_000,
  });
  await run('rm', ['-rf', staged, list]);
}

interface Found {
  readonly path: string;
  readonly bytes: number;
}

/** Plain files in a stable order. */
async function filesBelow(folder: string): Promise<Found[]> {
  const found: Found[] = [];
  const entries = await readdir(folder, { withFileTypes: true });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) found.push(...(await filesBelow(path)));
    else if (entry.isFile()) found.push({ path, bytes: (await stat(path)).size });
  }
  return found;
}

/** A share of each kind: programs would fill small images alone. */
function choose(lists: readonly (readonly Found[])[], wanted: number): string[] {
  return lists.flatMap((list) => {
    let left = wanted / lists.length;
    return list.flatMap(({ path, bytes }) => {
      // Blocks, not bytes; and one huge file must not be all there is.
      const taken = Math.ceil(bytes / 4096) * 4096;
      if (taken > left || taken > wanted / 20) return [];
      left -= taken;
      return [path];
    });
  });
}

/** About two in a hundred files removed, as much written anew: new inodes, old and new blocks. */
export async function editImage(image: string, folder: string): Promise<void> {
  const { stdout } = { stdout: await run('debugfs', ['-R', 'ls -p /usr/bin', image]) };
  const names = stdout
    .split('\n')
    .map((line) => line.split('/')[5] ?? '')
    .filter((name) => name !== '' && !name.startsWith('.') && !name.includes(' '));
  const commands: string[] = [];
  const fresh = join(folder, 'fresh');
  // Text that compresses and that no file of the image has.
  const lines = Array.from(
    { length: 40_000 },
    (_, i) => `line ${i} of a day's work: ${i * 7919}\n`,
  );
  await writeFile(fresh, lines.join(''));
  names.forEach((name, index) => {
    if (index % 10 !== 0) return;
    commands.push(`rm /usr/bin/${name}`, `write ${fresh} /usr/bin/${name}`);
  });
  const script = join(folder, 'edit.debugfs');
  await writeFile(script, `${commands.join('\n')}\n`);
  await run('debugfs', ['-w', '-f', script, image], { timeoutMs: 300_000 });
}
