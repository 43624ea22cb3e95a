/** The files of a new clone: its folder, configuration, and a descriptor and a disk for each disk. */
import type { Clock } from '../lib/clock.ts';
import type { Files } from '../lib/files.ts';
import type { Random } from '../lib/random.ts';
import { diskDescriptor } from './disk-descriptor.ts';
import { flatName } from './disk-names.ts';
import type { NodeRecord } from './file-nodes.ts';
import { FileTable, type TableChange } from './file-table.ts';
import { PlainFiles } from './plain-files.ts';
import { TimeSource } from './time-source.ts';
import type { DiskRoot } from '../vault/api.ts';

const rootId = 1;
const folderId = 2;

export async function makeFirstFiles(
  around: { readonly files: Files; readonly clock: Clock; readonly random: Random },
  directory: string,
  spec: {
    readonly folder: string;
    readonly disks: readonly { readonly file: string; readonly root: DiskRoot }[];
    readonly files: readonly { readonly name: string; readonly bytes: Uint8Array }[];
  },
): Promise<void> {
  const { files } = around;
  const now = new TimeSource(around.clock).next();
  const times = { accessed: now, modified: now, changed: now };
  const owned = { uid: 0, gid: 0, ...times };
  const directoryRecord = { kind: 'directory', mode: 0o755, ...owned } as const;
  const root: NodeRecord = { id: rootId, links: 3, parent: rootId, ...directoryRecord };
  const folder: NodeRecord = { id: folderId, links: 2, parent: rootId, ...directoryRecord };
  const changes: TableChange[] = [
    { put: folder },
    { link: { directory: rootId, name: spec.folder, id: folderId, cookie: 3 } },
  ];
  let next = folderId + 1;
  let cookie = 3;
  const add = (name: string, record: Partial<NodeRecord>): number => {
    const id = next++;
    changes.push(
      { put: { id, kind: 'file', mode: 0o644, links: 1, ...owned, ...record } },
      { link: { directory: folderId, name, id, cookie: cookie++ } },
    );
    return id;
  };
  const contents: { readonly id: number; readonly bytes: Uint8Array }[] = [];
  for (const { name, bytes } of spec.files) contents.push({ id: add(name, {}), bytes });
  for (const [disk, { file, root: diskRoot }] of spec.disks.entries()) {
    const flat = flatName(file);
    const uuid = around.random.uuid();
    const text = diskDescriptor({ flatName: flat, sizeBytes: diskRoot.sizeBytes, uuid });
    contents.push({ id: add(`${file}.vmdk`, {}), bytes: Buffer.from(text) });
    add(flat, { kind: 'disk', disk, mode: 0o600 });
  }
  await files.makeDirectory(`${directory}/files`);
  const plain = new PlainFiles(files, `${directory}/files`, async () => undefined);
  for (const { id, bytes } of contents) {
    await plain.write(id, Buffer.from(bytes), 0);
    await plain.sync(id);
  }
  await plain.close();
  await files.syncDirectory(`${directory}/files`);
  const table = await FileTable.create(files, `${directory}/names`, root);
  table.change(changes);
  await table.close();
}
