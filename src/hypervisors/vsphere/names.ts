/** A file of a datastore, as vSphere writes it: `[production] web01/web01.vmx`. */
export interface DatastorePath {
  readonly datastore: string;
  readonly path: string;
}

/** Undefined for what is no such path, as an unreachable file's `/vmfs/volumes/…`. */
export function parseDatastorePath(text: string): DatastorePath | undefined {
  const match = /^\[([^\]]*)\]\s*(.*)$/su.exec(text);
  if (match === null) return undefined;
  return { datastore: match[1] ?? '', path: match[2] ?? '' };
}

export function datastorePath(datastore: string, path: string): string {
  return `[${datastore}] ${path}`;
}

/** Names of managed entities come with `/`, `\` and `%` escaped (ManagedEntity.name). */
export function entityName(text: string | undefined): string {
  return (text ?? '').replaceAll(/%(2f|5c|25)/giu, (_all, hex: string) =>
    String.fromCharCode(parseInt(hex, 16)),
  );
}

export function escapeEntityName(name: string): string {
  return name.replaceAll('%', '%25').replaceAll('/', '%2f').replaceAll('\\', '%5c');
}

/** `web01/vda-flat.vmdk` -> `web01/vda.vmdk`: ESXi opens a disk by its descriptor. */
export function descriptorOf(flat: string): string {
  return flat.replace(/-flat\.vmdk$/iu, '.vmdk');
}

/** One remote place, spelt as it was given to the host: `server:/path`. */
export function locationOf(place: { readonly server: string; readonly path: string }): string {
  return `${place.server}:${place.path}`;
}

/** The keys of a .vmx (and of extraConfig) that prove a machine to be ours. */
export const markKeys = {
  /** The recovery's id. */
  mark: 'rouse.recovery',
  /** uuid.bios as we wrote it: a clone that somebody makes of our machine gets another. */
  uuid: 'rouse.uuid',
  /** The datastore that it was registered from. */
  datastore: 'rouse.datastore',
} as const;
