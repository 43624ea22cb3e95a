/**
 * Initramfs archives in the kernel's "newc" form (Documentation/driver-api/early-userspace/
 * buffer-format.rst), written here because a device node in one needs no root this way.
 */
export interface CpioEntry {
  readonly path: string;
  readonly mode: number;
  readonly content?: Uint8Array;
  /** For a device node. */
  readonly device?: { readonly major: number; readonly minor: number };
}

/** File types of st_mode (inode(7)). */
const regular = 0o100000;
const directory = 0o040000;
const symbolicLink = 0o120000;
const characterDevice = 0o020000;

export const entry = {
  file: (path: string, content: Uint8Array, permissions = 0o644): CpioEntry => ({
    path,
    mode: regular | permissions,
    content,
  }),
  directory: (path: string): CpioEntry => ({ path, mode: directory | 0o755 }),
  link: (path: string, target: string): CpioEntry => ({
    path,
    mode: symbolicLink | 0o777,
    content: Buffer.from(target),
  }),
  characterDevice: (path: string, major: number, minor: number): CpioEntry => ({
    path,
    mode: characterDevice | 0o600,
    device: { major, minor },
  }),
};

export function cpioArchive(entries: readonly CpioEntry[]): Buffer {
  const parts: Uint8Array[] = [];
  const all = [...entries, { path: 'TRAILER!!!', mode: 0 }];
  all.forEach((item, index) => parts.push(...record(item, index + 1)));
  return Buffer.concat(parts);
}

function record(item: CpioEntry, inode: number): Uint8Array[] {
  const name = Buffer.from(`${item.path.replace(/^\/+/, '')}\0`);
  const content = item.content ?? Buffer.alloc(0);
  const { major, minor } = item.device ?? { major: 0, minor: 0 };
  // inode, mode, uid, gid, links, mtime, size, device of the file, device it is, name, checksum
  const fields = [inode, item.mode, 0, 0, 1, 0, content.length, 0, 0, major, minor, name.length, 0];
  const header = Buffer.from(`070701${fields.map(hex8).join('')}`, 'latin1');
  return [header, name, padding(header.length + name.length), content, padding(content.length)];
}

function hex8(value: number): string {
  return value.toString(16).padStart(8, '0');
}

function padding(length: number): Uint8Array {
  return new Uint8Array((4 - (length % 4)) % 4);
}
