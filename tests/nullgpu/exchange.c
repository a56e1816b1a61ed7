/* NCCL among processes that each have a null GPU of their own. What is small is really sent, through files in the
   folder NULLGPU_EXCHANGE, since shapes and pickled objects travel so; what is large is garbage and stays where it is.
   A reduction gives each rank its own numbers. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>
#include <time.h>
#include <sys/stat.h>
typedef int E;
void nullgpu_count(int*,const char*);
#define COUNT(n) do{ static int id=-1; nullgpu_count(&id,n);}while(0)
#define SMALL (1<<16)
typedef struct {char id[96]; int size,rank; long turn,splits; long sent[64],received[64];} comm;
static const char*folder(void){ const char*f=getenv("NULLGPU_EXCHANGE"); return f?f:"/tmp"; }
static void put(const char*name,const void*data,size_t n){ char part[512],whole[512];
  snprintf(whole,sizeof whole,"%s/%s",folder(),name); snprintf(part,sizeof part,"%s.%d",whole,getpid());
  int f=open(part,O_WRONLY|O_CREAT|O_TRUNC,0600); if(f<0||write(f,data,n)!=(ssize_t)n) abort(); close(f);
  rename(part,whole); }
static void get(const char*name,void*data,size_t n,int last){ char whole[512];
  snprintf(whole,sizeof whole,"%s/%s",folder(),name); int f; long slept=0;
  while((f=open(whole,O_RDONLY))<0){ usleep(200); if(++slept>5L*60*5000){ fprintf(stderr,"null GPU: %s never came\n",
  name); abort(); } }
  if(read(f,data,n)<0) abort(); close(f); if(last) unlink(whole); }
/* What was received just now is what was sent, and is read as it is (see `zeros` in runtime.c); a while later its
   memory is something else's. */
#define A_WHILE 64
extern long nullgpu_launches;
static struct {const char*at; size_t n; long launches;} real[16]; static int reals=0;
static void received(const void*r,size_t n){ int i=reals++%16; real[i].at=r; real[i].n=n;
  real[i].launches=nullgpu_launches; }
int nullgpu_real(const void*p){ for(int i=0;i<16;i++) if((char*)p>=real[i].at&&(char*)p<real[i].at+real[i].n&&
  nullgpu_launches-real[i].launches<=A_WHILE) return 1; return 0; }
static int TS[]={1,1,4,4,8,8,2,4,8,2,1,1}; static size_t tsz(int t){return t<12?TS[t]:1;}
static void big(size_t n,int t){ if(n*tsz(t)>(1<<18)){ if(tsz(t)==2) COUNT("NCCL big reduction 16-bit");
  else COUNT("NCCL big reduction fp32"); } }
static void own(void*r,const void*s,size_t b){ if(s!=r&&r&&s&&b<=(1<<20)) memcpy(r,s,b); }
/* everybody's `b` bytes, one after another */
static void gather(comm*c,const void*s,char*r,size_t b){ char name[256]; long turn=c->turn++;
  if(c->size==1){ own(r,s,b); return; }
  char*mine=malloc(b); memcpy(mine,s,b); snprintf(name,sizeof name,"%s-g%ld-%d",c->id,turn,c->rank); put(name,mine,b);
  for(int i=0;i<c->size;i++){ if(i==c->rank){ memcpy(r+i*b,mine,b); continue; }
  snprintf(name,sizeof name,"%s-g%ld-%d",c->id,turn,i); get(name,r+i*b,b,0); } free(mine); }
E ncclGetVersion(int*v){*v=23007;return 0;}
E ncclGetUniqueId(char*p){ static int made=0; struct timespec t; clock_gettime(CLOCK_REALTIME,&t); memset(p,0,128);
  snprintf(p,128,"c%d.%d.%lx",getpid(),made++,(long)t.tv_nsec); return 0; }
const char*ncclGetErrorString(E e){return "";}
const char*ncclGetLastError(void*c){return "";}
struct uid{char b[128];};
E ncclCommInitRankConfig(comm**c,int n,struct uid id,int r,void*cfg){ COUNT("ncclCommInit"); *c=calloc(1,sizeof**c);
  (*c)->size=n; (*c)->rank=r; snprintf((*c)->id,sizeof (*c)->id,"%.60s",id.b); return 0; }
E ncclCommInitRank(comm**c,int n,struct uid id,int r){ return ncclCommInitRankConfig(c,n,id,r,0); }
E ncclCommInitRankScalable(comm**c,int n,int r,int ids,struct uid*id,void*cfg){
  return ncclCommInitRankConfig(c,n,*id,r,cfg); }
E ncclCommSplit(comm*c,int colour,int key,comm**made,void*cfg){ int mine[2]={colour,key},all[128][2]; COUNT("ncclCommInit");
  gather(c,mine,(char*)all,sizeof mine); *made=0; long split=c->splits++; if(colour<0) return 0;
  comm*m=calloc(1,sizeof*m); snprintf(m->id,sizeof m->id,"%.70s.s%ld.%d",c->id,split,colour);
  for(int i=0;i<c->size;i++) if(all[i][0]==colour){ m->size++; if(all[i][1]<key||(all[i][1]==key&&i<c->rank)) m->rank++; }
  *made=m; return 0; }
E ncclCommCount(comm*c,int*n){*n=c->size;return 0;}
E ncclCommUserRank(comm*c,int*r){*r=c->rank;return 0;}
E ncclCommGetAsyncError(void*c,int*e){*e=0;return 0;}
E ncclRedOpCreatePreMulSum(void*op){*(int*)op=7;return 0;}
E ncclAllReduce(const void*s,void*r,size_t n,int t,int op,comm*c,void*st){COUNT("NCCL AllReduce"); big(n,t);
  own(r,s,n*tsz(t)); return 0;}
E ncclReduce(const void*s,void*r,size_t n,int t,int op,int root,comm*c,void*st){COUNT("NCCL Reduce"); big(n,t);
  own(r,s,n*tsz(t)); return 0;}
E ncclReduceScatter(const void*s,void*r,size_t n,int t,int op,comm*c,void*st){COUNT("NCCL ReduceScatter"); big(n,t);
  own(r,s,n*tsz(t)); return 0;}
E ncclAllGather(const void*s,void*r,size_t n,int t,comm*c,void*st){COUNT("NCCL AllGather"); size_t b=n*tsz(t);
  if(b<=SMALL) gather(c,s,r,b); return 0;}
E ncclBroadcast(const void*s,void*r,size_t n,int t,int root,comm*c,void*st){ char name[256]; size_t b=n*tsz(t);
  COUNT("NCCL Broadcast"); if(b>SMALL||c->size==1){ own(r,s,b); return 0; }
  snprintf(name,sizeof name,"%s-b%ld",c->id,c->turn++);
  if(c->rank==root){ put(name,s,b); own(r,s,b); } else get(name,r,b,0); return 0; }
E ncclBcast(void*r,size_t n,int t,int root,comm*c,void*st){return ncclBroadcast(r,r,n,t,root,c,st);}
E ncclSend(const void*s,size_t n,int t,int to,comm*c,void*st){ char name[256]; size_t b=n*tsz(t); COUNT("NCCL Send");
  if(b>SMALL) return 0; snprintf(name,sizeof name,"%s-p%d-%d-%ld",c->id,c->rank,to,c->sent[to]++); put(name,s,b);
  return 0;}
E ncclRecv(void*r,size_t n,int t,int from,comm*c,void*st){ char name[256]; size_t b=n*tsz(t); COUNT("NCCL Recv");
  if(b>SMALL) return 0; snprintf(name,sizeof name,"%s-p%d-%d-%ld",c->id,from,c->rank,c->received[from]++);
  get(name,r,b,1); received(r,b); return 0;}
