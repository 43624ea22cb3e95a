import { RouseError } from '../errors.ts';
import { formatLimits } from '../limits.ts';

/**
 * A .vmx, the configuration of a VMware machine: lines of `key = "value"`. Order, comments and
 * unknown keys are kept, so that a machine is changed only where it was meant to be. Keys are
 * compared without regard to case, as VMware does.
 */
export class Vmx {
  readonly #lines: VmxLine[];

  constructor(lines: readonly VmxLine[]) {
    this.#lines = [...lines];
  }

  get(key: string): string | undefined {
    return this.#lines.findLast((line) => line.name === key.toLowerCase())?.value;
  }

  /** Changes the line where it stands, or adds one at the end. */
  set(key: string, value: string): void {
    const name = key.toLowerCase();
    const at = this.#lines.findLastIndex((line) => line.name === name);
    const text = `${this.#lines[at]?.key ?? key} = "${escapeValue(value)}"`;
    const line = { text, name, key: this.#lines[at]?.key ?? key, value };
    if (at < 0) this.#lines.push(line);
    else this.#lines[at] = line;
  }

  /** Removes every key that the pattern fits (tested in lower case). */
  remove(pattern: string | RegExp): void {
    const fits = (name: string) =>
      typeof pattern === 'string' ? name === pattern.toLowerCase() : pattern.test(name);
    for (let i = this.#lines.length - 1; i >= 0; i--) {
      const name = this.#lines[i]?.name;
      if (name !== undefined && fits(name)) this.#lines.splice(i, 1);
    }
  }

  /** As written, in order. */
  keys(): string[] {
    return this.#lines.flatMap((line) => (line.key === undefined ? [] : [line.key]));
  }

  toString(): string {
    return this.#lines.map((line) => `${line.text}\n`).join('');
  }
}

interface VmxLine {
  readonly text: string;
  /** Lower case; none: a comment or something unknown, kept as it is. */
  readonly name?: string;
  readonly key?: string;
  readonly value?: string;
}

export function parseVmx(text: string, where: string): Vmx {
  if (text.length > formatLimits.configurationBytesMax) {
    throw new RouseError('corrupt-data', `${where}: too long for a .vmx (${text.length} bytes)`);
  }
  if (text.includes('\0')) {
    throw new RouseError('corrupt-data', `${where}: not a .vmx: it holds zero bytes`);
  }
  const lines = text.split(/\r?\n/);
  if (lines.at(-1) === '') lines.pop();
  const parsed = lines.map(parseLine);
  if (!parsed.some((line) => line.name !== undefined)) {
    throw new RouseError('corrupt-data', `${where}: not a .vmx: no line has key = "value"`, {
      advice: 'Name the .vmx file of the machine.',
    });
  }
  return new Vmx(parsed);
}

function parseLine(text: string): VmxLine {
  const match = /^\s*([\w.:-]+)\s*=\s*(?:"(.*)"|(\S*))\s*$/s.exec(text);
  const key = match?.[1];
  if (match === null || key === undefined) return { text };
  return { text, key, name: key.toLowerCase(), value: unescapeValue(match[2] ?? match[3] ?? '') };
}

/** `|22` is a quote: a bar and two hexadecimal digits for what would break the line. */
function escapeValue(value: string): string {
  return value.replace(/["|\r\n\0]/g, (character) => {
    return `|${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`;
  });
}

function unescapeValue(value: string): string {
  return value.replace(/\|([0-9A-Fa-f]{2})/g, (_all, hex: string) =>
    String.fromCharCode(Number.parseInt(hex, 16)),
  );
}

export interface VmxDescription {
  readonly name: string;
  readonly uuid: string | undefined;
  readonly disks: readonly VmxDisk[];
  /** File name, relative to the .vmx. */
  readonly nvram: string | undefined;
}

export interface VmxDisk {
  /** `scsi0:0`, `sata0:1`, `ide0:0`, `nvme0:0`. */
  readonly slot: string;
  readonly fileName: string;
}

/** What a backup from files has to know of the machine. */
export function describeVmx(vmx: Vmx, where: string): VmxDescription {
  const disks: VmxDisk[] = [];
  for (const key of vmx.keys()) {
    const slot = /^((?:scsi|sata|ide|nvme)\d+:\d+)\.filename$/i.exec(key)?.[1]?.toLowerCase();
    const fileName = vmx.get(key) ?? '';
    if (slot === undefined || !fileName.toLowerCase().endsWith('.vmdk')) continue;
    const isPresent = (vmx.get(`${slot}.present`) ?? 'TRUE').toUpperCase() === 'TRUE';
    const type = (vmx.get(`${slot}.deviceType`) ?? 'scsi-hardDisk').toLowerCase();
    if (isPresent && !type.includes('cdrom')) disks.push({ slot, fileName });
  }
  const name = vmx.get('displayName');
  if (name === undefined || name === '') {
    throw new RouseError('corrupt-data', `${where}: this .vmx has no displayName`);
  }
  return { name, uuid: uuidOf(vmx.get('uuid.bios')), disks, nvram: vmx.get('nvram') };
}

/** `56 4d 12 34 ...-...` in the usual form. */
function uuidOf(value: string | undefined): string | undefined {
  const hex = (value ?? '').replace(/[\s-]/g, '').toLowerCase();
  const match = /^(.{8})(.{4})(.{4})(.{4})(.{12})$/.exec(/^[0-9a-f]{32}$/.test(hex) ? hex : '');
  return match === null ? undefined : match.slice(1).join('-');
}
