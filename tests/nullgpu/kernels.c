/* Kernels by name: who is registered, and how often each was launched. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
void nullgpu_launched(void);
typedef struct kernel {const void*host; const char*name; long launches; struct kernel*next;} kernel;
#define SLOTS (1<<16)
static kernel*table[SLOTS]; static pthread_mutex_t lock=PTHREAD_MUTEX_INITIALIZER;
static unsigned slot(const void*host){ return ((unsigned)((uintptr_t)host>>4)*2654435761u>>16)%SLOTS; }
static kernel*find(const void*host){ kernel*k=table[slot(host)]; while(k&&k->host!=host) k=k->next; return k; }
static kernel*add(const void*host,const char*name){ kernel*k=calloc(1,sizeof*k); k->name=strdup(name);
  k->host=host?host:k; unsigned at=slot(k->host); pthread_mutex_lock(&lock); k->next=table[at]; table[at]=k;
  pthread_mutex_unlock(&lock); return k; }
/* Returns a handle of a kernel that is known by its name alone: one a name, so that launches of a name add up. */
void*nullgpu_named(const char*name){ static kernel*made[4096]; static int many=0; for(int i=0;i<many;i++)
  if(!strcmp(made[i]->name,name)) return made[i]; kernel*k=add(0,name); if(many<4096) made[many++]=k; return k; }
void nullgpu_register_kernel(const void*host,const char*name){ if(!find(host)) add(host,name); }
void nullgpu_launch(const void*host){ kernel*k=find(host); if(!k) k=add(host,"unknown");
  __sync_fetch_and_add(&k->launches,1); nullgpu_launched(); }
void nullgpu_reset_launches(void){ for(int i=0;i<SLOTS;i++) for(kernel*k=table[i];k;k=k->next) k->launches=0; }
int nullgpu_dump_launches(char*b,int size){ int o=0; *b=0; for(int i=0;i<SLOTS;i++)
  for(kernel*k=table[i];k;k=k->next) if(k->launches&&o<size) o+=snprintf(b+o,size-o,"%s %ld\n",k->name,k->launches);
  return o; }
